//! `containerd-shim-edgepull-v1`.

fn main() {}
