//! edgepull
