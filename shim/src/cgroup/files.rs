//! The files of a cgroup. One that is not there, or that reads otherwise than it should, tells
//! nothing: kernels differ in what they have.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// No file of a cgroup is longer.
const LONGEST: u64 = 1024 * 1024;

pub(super) fn text(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = File::open(path).ok()?;
    file.take(LONGEST).read_to_string(&mut text).ok()?;
    Some(text)
}

/// A number of a file; `max` stands for `unlimited`. What is negative is less than nothing.
pub(super) fn number(text: &str, unlimited: u64) -> Option<u64> {
    match text.trim() {
        "max" => Some(unlimited),
        text if text.starts_with('-') => text.parse::<i64>().ok().map(|_| 0),
        text => text.parse().ok(),
    }
}

/// A file's values by their names: a name and a number on each line.
#[derive(Debug, Default)]
pub(super) struct Values(HashMap<String, u64>);

impl Values {
    pub(super) fn read(path: &Path) -> Option<Values> {
        let text = text(path)?;
        let values = text.lines().filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), number(value, u64::MAX)?))
        });
        Some(Values(values.collect()))
    }

    pub(super) fn find(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// 0 if it is not there.
    pub(super) fn get(&self, name: &str) -> u64 {
        self.find(name).unwrap_or(0)
    }
}

/// The devices of a file of RDMA: name, handles and objects.
pub(super) fn rdma(path: &Path) -> Vec<(String, u32, u32)> {
    let text = text(path).unwrap_or_default();
    let devices = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let device = words.next()?.to_owned();
        let (mut handles, mut objects) = (0, 0);
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let value = number(value, u64::from(u32::MAX)).and_then(|value| value.try_into().ok());
            match (name, value) {
                ("hca_handle", Some(value)) => handles = value,
                ("hca_object", Some(value)) => objects = value,
                _ => {}
            }
        }
        Some((device, handles, objects))
    });
    devices.collect()
}

/// The sizes of huge pages, as the names of files have them: `2MB`.
pub(super) fn huge_page_sizes(root: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(root.join("sys/kernel/mm/hugepages")) else {
        return Vec::new();
    };
    let mut sizes: Vec<u64> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            let size = name.to_str()?.strip_prefix("hugepages-")?;
            size.strip_suffix("kB")?.parse().ok()
        })
        .collect();
    sizes.sort_unstable();
    sizes
        .into_iter()
        .map(|size| match size {
            size if size >= 1 << 20 => format!("{}GB", size >> 20),
            size if size >= 1 << 10 => format!("{}MB", size >> 10),
            size => format!("{size}KB"),
        })
        .collect()
}
