//! The line of JSON with which each connection to the controller begins that is not a client's own: for whom, or for what, it
//! is; and the questions that machines ask before they speak the services' protocol.

use berth_model::direct::StreamWay;
use berth_model::member::{MemberRole, MemberState};
use berth_model::request::Peer;
use berth_model::{NodeName, StepKey, Time};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest line that a connection begins with.
pub(crate) const MAX_PREFACE: usize = 2048;
/// Longest answer to a question: a configuration.
const MAX_REPLY: usize = 1 << 20;
/// How long the other side may take for what comes before everything else.
pub(crate) const PREFACE_PATIENCE: Duration = Duration::from_secs(5);

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Preface {
    /// The link of the node's agent.
    Node {
        /// The node's name.
        node: NodeName,
    },
    /// A stream to a node, for somebody on this one.
    Stream {
        /// Where to.
        to: NodeName,
        /// For whom.
        peer: Peer,
    },
    /// How are nodes reached without the controller, for a step of somebody on this machine? Each answer is good for one connection.
    Ways {
        /// Which step.
        ways: StepKey,
        /// For whom.
        peer: Peer,
        /// The one node that is meant; absent: all of the step.
        #[serde(default)]
        only: Option<NodeName>,
        /// Digest of the key that this machine will show there. Who asks by TLS is taken at the key of the connection alone.
        #[serde(default)]
        key: String,
    },
    /// The stream that the controller asked a node for.
    Answer {
        /// Its number.
        answer: u64,
    },
    /// A machine asks something.
    Question {
        /// What.
        question: Question,
    },
    /// For a client: of a job's listener, or of a login node.
    Client(Peer),
}

/// What a machine asks.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// What time is it with you? For anyone: a machine with a wrong clock cannot judge certificates.
    Clock,
    /// Let me in.
    Enrol {
        /// The token's id.
        token: String,
        /// Its secret.
        secret: Hex,
        /// As what.
        name: NodeName,
        /// The public key (SubjectPublicKeyInfo, DER): that of this connection.
        public: Hex,
    },
    /// A new certificate, for this connection's key or for another one that takes its place.
    Renew {
        /// The public key, as in `Enrol`.
        public: Hex,
    },
    /// The configuration in force.
    Settings,
    /// I leave: be done with me. Whose key the connection shows is meant, and nobody can be named.
    Leave,
}

/// Bytes, in JSON as hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hex(pub Vec<u8>);

impl Serialize for Hex {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.iter().fold(String::new(), |text, b| text + &format!("{b:02x}")))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Hex, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let bytes = text.as_bytes().chunks(2).map(|pair| match pair {
            [a, b] => Some(digit(*a)? << 4 | digit(*b)?),
            _ => None,
        });
        // What it is may be a secret: the error does not say.
        bytes.collect::<Option<_>>().map(Hex).ok_or_else(|| serde::de::Error::custom("no hexadecimal digits"))
    }
}

// A secret is in no log.
impl std::fmt::Debug for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Question::Clock => f.write_str("Clock"),
            Question::Enrol { token, name, .. } => write!(f, "Enrol {{ token: {token:?}, name: {name} }}"),
            Question::Renew { .. } => f.write_str("Renew"),
            Question::Settings => f.write_str("Settings"),
            Question::Leave => f.write_str("Leave"),
        }
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Go on.
    Welcome,
    /// No, and why.
    Refused(String),
    /// The time.
    Clock(Time),
    /// Let in.
    Enrolled {
        /// The certificate (DER).
        certificate: Hex,
        /// Name of the cluster.
        cluster: String,
        /// As what.
        role: MemberRole,
        /// Whether an administrator has to approve first.
        state: MemberState,
    },
    /// The configuration: [`berth_model::config::Config::told`].
    Settings(serde_json::Value),
    /// It belongs to the cluster no longer.
    Left,
    /// It cannot leave yet, and why: jobs have something on it.
    Stays(String),
    /// To who asks for a certificate: the cluster does not have this key, and why. Nothing comes of asking again.
    Nobody(String),
    /// How nodes are reached; those that are not named are not reached but by the controller.
    Ways(Vec<StreamWay>),
}

impl Preface {
    /// The line, line feed included.
    pub fn line(&self) -> Vec<u8> {
        line(self)
    }

    /// Reads the line and not a byte more.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Preface> {
        read(stream, MAX_PREFACE).await
    }
}

impl Reply {
    /// Writes the line.
    pub(crate) async fn write(&self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        in_time(async {
            stream.write_all(&line(self)).await?;
            stream.flush().await
        })
        .await
    }

    /// Reads the line and not a byte more.
    pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Reply> {
        read(stream, MAX_REPLY).await
    }
}

pub(crate) fn line(value: &impl Serialize) -> Vec<u8> {
    // Strings, numbers and lists of them always serialise.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

pub(crate) async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
    most: usize,
) -> io::Result<T> {
    let read = async {
        let mut line = Vec::with_capacity(64);
        loop {
            match stream.read_u8().await? {
                b'\n' => break,
                _ if line.len() == most => {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "the first line is too long"));
                }
                byte => line.push(byte),
            }
        }
        serde_json::from_slice(&line).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    };
    in_time(read).await
}

pub(crate) async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PREFACE_PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 s")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::{Attempt, Gid, JobId, StepId, Uid};

    #[test]
    fn lines_are_what_they_were() {
        let peer = Peer { uid: Uid(7), gid: Gid(8), job: Some(JobId(9)) };
        let name = NodeName("n1".into());
        let all = [
            Preface::Node { node: name.clone() },
            Preface::Stream { to: name.clone(), peer },
            Preface::Ways {
                ways: StepKey { job: JobId(9), attempt: Attempt(1), step: StepId::Number(3) },
                peer,
                only: Some(name.clone()),
                key: "ab".into(),
            },
            Preface::Answer { answer: 5 },
            Preface::Question { question: Question::Clock },
            Preface::Question { question: Question::Renew { public: Hex(vec![0, 255]) } },
            Preface::Question { question: Question::Leave },
            Preface::Client(peer),
        ];
        for preface in all {
            let line = preface.line();
            assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
            assert_eq!(serde_json::from_slice::<Preface>(&line).unwrap(), preface);
        }
    }

    #[test]
    fn a_secret_is_not_printed() {
        let question = Question::Enrol {
            token: "abc".into(),
            secret: Hex(vec![0x5e, 0xc2, 0xe7]),
            name: NodeName("n1".into()),
            public: Hex(Vec::new()),
        };
        let shown = format!("{:?}", Preface::Question { question });
        assert!(shown.contains("abc") && !shown.contains("5ec2e7") && !shown.contains("94"), "{shown}");
    }
}
