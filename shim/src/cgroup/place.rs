//! Where the cgroups of a process are: by the process, and never by what the container's
//! configuration calls them, which with systemd is no path at all.

use std::path::{Component, Path, PathBuf};

use super::files::text;
use crate::mountinfo;

/// The controllers of version 1 that there is anything to read of.
const CONTROLLERS: [&str; 7] = [
    "memory", "cpu", "cpuacct", "blkio", "pids", "hugetlb", "rdma",
];

/// Where the mounts of both versions usually are.
const USUAL: &str = "sys/fs/cgroup";

/// The cgroups of a process.
#[derive(Debug)]
pub(super) enum Place {
    /// One for each controller, whatever else is mounted.
    V1(Controllers),
    /// One.
    V2(PathBuf),
}

/// The controllers that are mounted, and where.
#[derive(Debug, Default)]
pub(super) struct Controllers(Vec<(&'static str, PathBuf)>);

impl Controllers {
    pub(super) fn path(&self, name: &str) -> Option<&Path> {
        let found = self.0.iter().find(|(controller, _)| *controller == name);
        found.map(|(_, path)| path.as_path())
    }

    /// Whether any of them is there.
    pub(super) fn exist(&self) -> bool {
        self.0.iter().any(|(_, path)| path.exists())
    }
}

/// One mount of a hierarchy.
struct Mount {
    /// Which part of the hierarchy it shows.
    shows: PathBuf,
    at: PathBuf,
    /// The options of version 1, among them its controllers; of version 2, nothing.
    options: Option<String>,
}

impl Mount {
    /// A line such as `35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory`.
    fn parse(root: &Path, line: &str) -> Option<Mount> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let mut filesystem = filesystem.split(' ');
        let options = match filesystem.next()? {
            "cgroup" => Some(filesystem.nth(1)?.to_owned()),
            "cgroup2" => None,
            _ => return None,
        };
        let (shows, at) = (
            mountinfo::unescape(mount.next()?),
            mountinfo::unescape(mount.next()?),
        );
        Some(Mount {
            shows: shows.into(),
            at: root.join(at.trim_start_matches('/')),
            options,
        })
    }

    fn has(&self, controller: &str) -> bool {
        let mut options = self.options.iter().flat_map(|options| options.split(','));
        options.any(|option| option == controller)
    }

    /// Where it shows the cgroup that is called `path`.
    fn find(&self, path: &str) -> Option<PathBuf> {
        let below = Path::new(path).strip_prefix(&self.shows).ok()?;
        // What lies outside of our cgroup namespace is named by its way there.
        let is_inside = below
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        is_inside.then(|| self.at.join(below))
    }
}

impl Place {
    /// The cgroups of the process `pid`, as seen under `root`; or what is missing.
    pub(super) fn of(root: &Path, pid: i32) -> Result<Place, String> {
        let file = root.join(format!("proc/{pid}/cgroup"));
        let cgroups = text(&file).ok_or_else(|| format!("cannot read {}", file.display()))?;
        let mounts = mounts(root)?;
        // Each line is `number:controllers:path`; the one of version 2 is `0::path`.
        let lines = cgroups.lines().filter_map(|line| {
            let (_, line) = line.split_once(':')?;
            line.split_once(':')
        });
        let unified = || {
            let (_, path) = lines
                .clone()
                .find(|(controllers, _)| controllers.is_empty())?;
            let mut mounts = mounts.iter().filter(|mount| mount.options.is_none());
            mounts.find_map(|mount| mount.find(path))
        };
        let usual = root.join(USUAL);
        let is_unified = |mount: &Mount| mount.options.is_none() && mount.at == usual;
        if !mounts.iter().any(is_unified) {
            let find = |name: &'static str| {
                let is_name = |controllers: &str| controllers.split(',').any(|other| other == name);
                let (_, path) = lines
                    .clone()
                    .find(|(controllers, _)| is_name(controllers))?;
                let mut mounts = mounts.iter().filter(|mount| mount.has(name));
                mounts.find_map(|mount| Some((name, mount.find(path)?)))
            };
            let controllers: Vec<_> = CONTROLLERS.into_iter().filter_map(find).collect();
            if !controllers.is_empty() {
                return Ok(Place::V1(Controllers(controllers)));
            }
        }
        unified().map(Place::V2).ok_or_else(|| {
            format!(
                "no mount shows the cgroup of process {pid}: see {}",
                root.join("proc/self/mountinfo").display()
            )
        })
    }
}

/// The mounts of cgroups, the usual places first.
fn mounts(root: &Path) -> Result<Vec<Mount>, String> {
    let file = root.join("proc/self/mountinfo");
    let mut mounts = Vec::new();
    mountinfo::lines(&file, |line| mounts.extend(Mount::parse(root, line)))
        .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let usual = root.join(USUAL);
    mounts.sort_by_key(|mount| !mount.at.starts_with(&usual));
    Ok(mounts)
}
