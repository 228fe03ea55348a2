//! The wire: protobuf services, conversion to model types, identity, the authorisation table.
#![forbid(unsafe_code)]
