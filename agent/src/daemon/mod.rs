//! The daemon: one loop over plan and steps, and those who ask it.
