//! Image references, sources, content store, unpacking, layers.
#![forbid(unsafe_code)]
