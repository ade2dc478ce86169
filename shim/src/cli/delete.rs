//! `delete`: cleans up after a shim that is not there any more.

use std::time::SystemTime;

use prost::Message;

use crate::bundle::{self, Bundle};
use crate::child::Reaper;
use crate::error::{Error, Result};
use crate::idmap;
use crate::mounts;
use crate::oci::{self, Runtime};
use crate::wire::task::DeleteResponse;

use super::flags::Flags;
use super::socket;

/// 128 and SIGKILL, as everybody says it.
const KILLED: u32 = 137;

pub(super) fn run(flags: &Flags) -> Result<Vec<u8>> {
    bundle::check_id(&flags.id)?;
    let directory = match &flags.bundle {
        Some(path) => path.clone(),
        None => {
            std::env::current_dir().map_err(|error| Error::io("the current directory", error))?
        }
    };
    // The directory that is named may be another container's of the group.
    let directory = match (directory.file_name(), directory.parent()) {
        (Some(name), Some(parent)) if *name != *flags.id => parent.join(&flags.id),
        _ => directory,
    };
    let bundle = Bundle::new(directory);
    let options = bundle.remembered().unwrap_or_else(|error| {
        warn(&error);
        crate::wire::options::Options::default()
    });
    let runtime = Runtime::new(&options, &flags.namespace, bundle.path());
    super::block_on(async {
        let reaper = Reaper::new().map_err(|error| Error::io("waiting for children", error))?;
        tokio::task::spawn_local(reaper.reap_forever());
        match runtime.delete(&flags.id, true).await {
            Ok(Ok(_)) => {}
            Ok(Err(failure)) if failure.is_unknown_container() => {}
            Ok(Err(failure)) => warn(&failure.error("failed to remove the container")),
            Err(error) => warn(&error),
        }
        Ok::<(), Error>(())
    })??;
    // Never the bundle itself: called by hand, this directory may be anything.
    for place in [vec![bundle.rootfs()], idmap::left_in(bundle.path())].concat() {
        if let Err(error) = mounts::unmount_recursive(&place) {
            warn(&error);
        }
    }
    let spec = bundle.spec().unwrap_or_default();
    let group = spec.group().unwrap_or(&flags.id);
    if let Ok(usual) = socket::path(None, &flags.address, &flags.namespace, group) {
        socket::forget(&bundle.join("address"), &usual);
    }
    crate::cgroup::remove_leftover(&spec.linux.unwrap_or_default().cgroups_path);
    let pid = oci::read_pid(&bundle.join("init.pid")).ok();
    let response = DeleteResponse {
        pid: pid
            .and_then(|pid| u32::try_from(pid.as_raw()).ok())
            .unwrap_or(0),
        exit_status: KILLED,
        exited_at: Some(SystemTime::now().into()),
    };
    Ok(response.encode_to_vec())
}

/// containerd writes it into its log; the deletion goes on.
fn warn(error: &Error) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{error}");
}
