//! The controller: the core and its store behind the cluster's services.
#![forbid(unsafe_code)]
