//! What this host can run.
