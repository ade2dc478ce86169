//! What keeps an image as it should be, once it is here: observing, pins, earlier targets,
//! pruning, repair, and the room that a pull needs.

pub mod observe;
