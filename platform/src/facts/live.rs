//! What only the running system can tell: `uname`, the auxiliary vector, and whether the core
//! and the kernel have a 32-bit Arm mode.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use nix::errno::Errno;
use nix::sys::personality::{self, Persona};
use nix::sys::utsname::{UtsName, uname};

use super::LONGEST_CPUINFO;
use crate::error::FactsError;
use crate::platform::own_architecture;

/// Entries of the auxiliary vector: number, probe, and whether the value is printed in hex.
const AUXILIARY: &[(u64, &str, bool)] = &[
    (6, "AT_PAGESZ", false),
    (16, "AT_HWCAP", true),
    (26, "AT_HWCAP2", true),
];
/// The number of the entry that points at the platform's name.
const AT_PLATFORM: u64 = 15;
/// The personality of a 32-bit program.
const PER_LINUX32: i32 = 8;

/// All live probes, by their names in a recorded host.
pub(super) fn probes() -> Result<BTreeMap<String, String>, FactsError> {
    let mut probes = quick_probes()?;
    let machine = probes.get("uname_machine").map(String::as_str);
    if matches!(machine, Some("aarch64" | "arm64" | "armv8l")) {
        probes.extend(under_linux32());
    }
    Ok(probes)
}

/// Those that cost nothing to speak of.
pub(super) fn quick_probes() -> Result<BTreeMap<String, String>, FactsError> {
    let name = uname().map_err(|errno| FactsError::Uname {
        source: errno.into(),
    })?;
    let machine = text(name.machine());
    let mut probes = BTreeMap::from([
        ("uname_sysname".to_owned(), text(name.sysname())),
        ("uname_release".to_owned(), text(name.release())),
        ("userland_bits".to_owned(), usize::BITS.to_string()),
        ("userland".to_owned(), own_userland()),
    ]);
    probes.insert("uname_machine".to_owned(), machine);
    probes.extend(auxiliary());
    Ok(probes)
}

fn text(value: &std::ffi::OsStr) -> String {
    value.to_string_lossy().into_owned()
}

/// What this program was built for, by Debian's name: its own truth about the userland.
fn own_userland() -> String {
    let (architecture, variant) = own_architecture();
    match (architecture.as_str(), variant.as_str()) {
        ("arm", "v5") => "armel".to_owned(),
        ("arm", _) => "armhf".to_owned(),
        ("386", _) => "i386".to_owned(),
        ("ppc64le", _) => "ppc64el".to_owned(),
        ("mips64le", _) => "mips64el".to_owned(),
        (name, _) => name.to_owned(),
    }
}

/// Takes the 32-bit personality in a thread of its own (it is a thread's property), and looks at
/// what the kernel then says of itself. A refusal other than "no such mode" is not observed.
pub(super) fn under_linux32() -> BTreeMap<String, String> {
    std::thread::spawn(|| {
        let mut seen = BTreeMap::new();
        // Exactly this value: seccomp profiles of containers allow it, but not with other flags.
        match personality::set(Persona::from_bits_retain(PER_LINUX32)) {
            Err(Errno::EINVAL) => {
                seen.insert("personality_per_linux32".to_owned(), "einval".to_owned());
            }
            Err(_) => {}
            Ok(_) => {
                seen.insert("personality_per_linux32".to_owned(), "ok".to_owned());
                if let Some(machine) = uname().ok().as_ref().map(UtsName::machine) {
                    seen.insert("uname_machine_under_linux32".to_owned(), text(machine));
                }
                if let Some(features) = features() {
                    seen.insert("features_under_linux32".to_owned(), features);
                }
            }
        }
        seen
    })
    .join()
    .unwrap_or_default()
}

/// The first `Features` line of the CPU description, as this thread sees it.
fn features() -> Option<String> {
    let mut bytes = Vec::new();
    File::open("/proc/cpuinfo")
        .ok()?
        .take(LONGEST_CPUINFO)
        .read_to_end(&mut bytes)
        .ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.trim()
            .eq_ignore_ascii_case("features")
            .then(|| value.trim().to_owned())
    })
}

fn auxiliary() -> BTreeMap<String, String> {
    let mut bytes = Vec::new();
    let read =
        File::open("/proc/self/auxv").and_then(|file| file.take(64 << 10).read_to_end(&mut bytes));
    if read.is_err() {
        return BTreeMap::new();
    }
    let entries = parse_auxv(&bytes, size_of::<usize>());
    let mut found = BTreeMap::new();
    for (number, probe, hex) in AUXILIARY {
        if let Some(value) = entries.get(number) {
            let value = if *hex {
                format!("{value:#x}")
            } else {
                value.to_string()
            };
            found.insert((*probe).to_owned(), value);
        }
    }
    if let Some(name) = entries
        .get(&AT_PLATFORM)
        .and_then(|address| own_string(*address))
    {
        found.insert("AT_PLATFORM".to_owned(), name);
    }
    found
}

/// Reads pairs of words of 4 or 8 bytes in this machine's byte order, up to the pair 0.
pub(super) fn parse_auxv(bytes: &[u8], word: usize) -> BTreeMap<u64, u64> {
    let words = bytes.chunks_exact(word.max(1)).map(|chunk| {
        match (<[u8; 8]>::try_from(chunk), <[u8; 4]>::try_from(chunk)) {
            (Ok(long), _) => u64::from_ne_bytes(long),
            (_, Ok(short)) => u64::from(u32::from_ne_bytes(short)),
            _ => 0,
        }
    });
    let words: Vec<u64> = words.collect();
    words
        .chunks_exact(2)
        .filter_map(|pair| Some((*pair.first()?, *pair.last()?)))
        .take_while(|(number, _)| *number != 0)
        .collect()
}

/// A short string of this process, read through its memory file.
fn own_string(address: u64) -> Option<String> {
    let mut memory = File::open("/proc/self/mem").ok()?;
    memory.seek(SeekFrom::Start(address)).ok()?;
    let mut bytes = [0; 32];
    let length = memory.read(&mut bytes).ok()?;
    let text = bytes.get(..length)?.split(|byte| *byte == 0).next()?;
    let text = std::str::from_utf8(text).ok()?;
    text.bytes()
        .all(|byte| byte.is_ascii_graphic())
        .then(|| text.to_owned())
        .filter(|text| !text.is_empty())
}
