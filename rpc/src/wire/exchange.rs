//! What agents and the controller say to each other about images that travel between nodes, on the wire.

use super::{Field, Malformed, required, required_member, structs};
use crate::pb;
use berth_model::exchange::{FromPeers, HeldImage, ImageWay, MadeForm, RemovedImage, ToPeers};

structs! {
    HeldImage { digest, users, made }
    MadeForm { layer, writer, digest, size }
    RemovedImage { digest, name, owners }
}

required_member!(FromPeers => pb::FromPeers);
required_member!(ImageWay => pb::ImageWay);

impl Field<pb::FromPeers> for FromPeers {
    fn put(&self) -> pb::FromPeers {
        use pb::from_peers::Kind;
        let kind = match self {
            FromPeers::Ready { address, key, streams, connected } => Kind::Ready(pb::PeerReady {
                address: address.clone(),
                key: key.clone(),
                streams: *streams,
                connected: connected.clone(),
            }),
            FromPeers::Wanted { ask, job, attempt, digest, bytes, failed } => Kind::Wanted(pb::ImageWanted {
                ask: *ask,
                job: job.put(),
                attempt: attempt.put(),
                digest: digest.clone(),
                bytes: *bytes,
                failed: failed.put(),
            }),
            FromPeers::Asked { ask, user, digest, bytes, failed } => Kind::Asked(pb::ImageAsked {
                ask: *ask,
                user: user.put(),
                digest: digest.clone(),
                bytes: *bytes,
                failed: failed.put(),
            }),
            FromPeers::Found { ask, key, image } => {
                Kind::Found(pb::ImageFound { ask: *ask, key: Some(key.put()), image: Some(image.put()) })
            }
            FromPeers::Name { ask, key } => Kind::Name(pb::NameAsked { ask: *ask, key: Some(key.put()) }),
            FromPeers::Named { key, image, why, proof } => Kind::Named(pb::NameFound {
                key: Some(key.put()),
                image: image.put(),
                why: why.clone(),
                proof: proof.clone(),
            }),
            FromPeers::Holds { all, images, gone } => {
                Kind::Holds(pb::ImagesHold { all: *all, images: images.put(), gone: gone.clone() })
            }
            FromPeers::Removed { ask, by, user, images } => Kind::Removed(pb::ImagesRemoved {
                ask: *ask,
                by: by.put(),
                user: user.clone(),
                images: images.put(),
            }),
            FromPeers::Done { ask, there, why } => {
                Kind::Done(pb::ImageDone { ask: *ask, there: *there, why: why.clone() })
            }
        };
        pb::FromPeers { kind: Some(kind) }
    }

    fn get(wire: pb::FromPeers) -> Result<Self, Malformed> {
        use pb::from_peers::Kind;
        Ok(match wire.kind.ok_or(Malformed::new("not a known word about images"))? {
            Kind::Ready(pb::PeerReady { address, key, streams, connected }) => {
                FromPeers::Ready { address, key, streams, connected }
            }
            Kind::Wanted(pb::ImageWanted { ask, job, attempt, digest, bytes, failed }) => FromPeers::Wanted {
                ask,
                job: Field::get(job)?,
                attempt: Field::get(attempt)?,
                digest,
                bytes,
                failed: Field::get(failed)?,
            },
            Kind::Asked(pb::ImageAsked { ask, user, digest, bytes, failed }) => {
                FromPeers::Asked { ask, user: Field::get(user)?, digest, bytes, failed: Field::get(failed)? }
            }
            Kind::Found(pb::ImageFound { ask, key, image }) => {
                FromPeers::Found { ask, key: required(key)?, image: required(image)? }
            }
            Kind::Name(pb::NameAsked { ask, key }) => FromPeers::Name { ask, key: required(key)? },
            Kind::Named(pb::NameFound { key, image, why, proof }) => {
                FromPeers::Named { key: required(key)?, image: Field::get(image)?, why, proof }
            }
            Kind::Holds(pb::ImagesHold { all, images, gone }) => {
                FromPeers::Holds { all, images: Field::get(images)?, gone }
            }
            Kind::Removed(pb::ImagesRemoved { ask, by, user, images }) => {
                FromPeers::Removed { ask, by: Field::get(by)?, user, images: Field::get(images)? }
            }
            Kind::Done(pb::ImageDone { ask, there, why }) => FromPeers::Done { ask, there, why },
        })
    }
}

impl Field<pb::ImageWay> for ImageWay {
    fn put(&self) -> pb::ImageWay {
        use pb::image_way::Kind;
        let kind = match self {
            ImageWay::Wait => Kind::Wait(pb::WaitForImage {}),
            ImageWay::Source => Kind::Source(pb::FromSource {}),
            ImageWay::Peer { node, address, key, forms } => Kind::Peer(pb::PeerWay {
                node: node.put(),
                address: address.clone(),
                key: key.clone(),
                forms: forms.put(),
            }),
        };
        pb::ImageWay { kind: Some(kind) }
    }

    fn get(wire: pb::ImageWay) -> Result<Self, Malformed> {
        use pb::image_way::Kind;
        Ok(match wire.kind.ok_or(Malformed::new("not a known way to an image"))? {
            Kind::Wait(pb::WaitForImage {}) => ImageWay::Wait,
            Kind::Source(pb::FromSource {}) => ImageWay::Source,
            Kind::Peer(pb::PeerWay { node, address, key, forms }) => {
                ImageWay::Peer { node: Field::get(node)?, address, key, forms: Field::get(forms)? }
            }
        })
    }
}

impl Field<pb::ToPeers> for ToPeers {
    fn put(&self) -> pb::ToPeers {
        use pb::to_peers::Kind;
        let kind = match self {
            ToPeers::Way { ask, way, note } => {
                Kind::Way(pb::WayTold { ask: *ask, way: way.put(), note: note.clone() })
            }
            ToPeers::Pinned { ask, image } => {
                Kind::Pinned(pb::ImagePinned { ask: *ask, image: Some(image.put()) })
            }
            ToPeers::Noted { ask } => Kind::Noted(pb::RemovalNoted { ask: *ask }),
            ToPeers::Name { ask, image, note, proof } => Kind::Name(pb::NameTold {
                ask: *ask,
                image: image.put(),
                note: note.clone(),
                proof: proof.clone(),
            }),
            ToPeers::Fetch { user, image } => {
                Kind::Fetch(pb::FetchForUser { user: user.put(), image: Some(image.put()) })
            }
            ToPeers::Login { ask, login } => Kind::Login(pb::LoginTold { ask: *ask, login: login.put() }),
            ToPeers::Unwanted { ask } => Kind::Unwanted(pb::ImageUnwanted { ask: *ask }),
            ToPeers::Serve { node, key, digest, source, user, time } => Kind::Serve(pb::ServeImage {
                node: node.put(),
                key: key.clone(),
                digest: digest.clone(),
                source: source.clone(),
                user: user.put(),
                time: time.put(),
            }),
            ToPeers::EndServe { key, digest } => {
                Kind::EndServe(pb::EndServe { key: key.clone(), digest: digest.clone() })
            }
        };
        pb::ToPeers { kind: Some(kind) }
    }

    fn get(wire: pb::ToPeers) -> Result<Self, Malformed> {
        use pb::to_peers::Kind;
        Ok(match wire.kind.ok_or(Malformed::new("not a known word about images"))? {
            Kind::Way(pb::WayTold { ask, way, note }) => ToPeers::Way { ask, way: required(way)?, note },
            Kind::Pinned(pb::ImagePinned { ask, image }) => ToPeers::Pinned { ask, image: required(image)? },
            Kind::Name(pb::NameTold { ask, image, note, proof }) => {
                ToPeers::Name { ask, image: Field::get(image)?, note, proof }
            }
            Kind::Fetch(pb::FetchForUser { user, image }) => {
                ToPeers::Fetch { user: Field::get(user)?, image: required(image)? }
            }
            Kind::Login(pb::LoginTold { ask, login }) => ToPeers::Login { ask, login: Field::get(login)? },
            Kind::Unwanted(pb::ImageUnwanted { ask }) => ToPeers::Unwanted { ask },
            Kind::Serve(pb::ServeImage { node, key, digest, source, user, time }) => ToPeers::Serve {
                node: Field::get(node)?,
                key,
                digest,
                source,
                user: Field::get(user)?,
                time: Field::get(time)?,
            },
            Kind::Noted(pb::RemovalNoted { ask }) => ToPeers::Noted { ask },
            Kind::EndServe(pb::EndServe { key, digest }) => ToPeers::EndServe { key, digest },
        })
    }
}
