//! The node agent: hardware probe, link to the controller, images, zygote and supervisors.
#![forbid(unsafe_code)]
