//! Go's build information, as `debug/buildinfo` reads it (golang/go, src/debug/buildinfo).

use super::bytes::Reader;

/// The section's name.
pub(super) const SECTION: &[u8] = b".go.buildinfo";
const MAGIC: &[u8] = b"\xff Go buildinf:";
/// Magic, pointer size and flags; what follows is inline where flag 2 is set.
const HEADER: usize = 32;
/// Where there are no sections, as far into the data as Go itself looks.
const SEARCHED: usize = 64 << 10;
/// `build` lines stand at the end of the module's text, after its dependencies.
const LONGEST_TAIL: u64 = 64 << 10;
const LONGEST_VALUE: usize = 64;
/// The settings that decide where a program runs.
const KEYS: &[&str] = &[
    "GOOS",
    "GOARCH",
    "GO386",
    "GOAMD64",
    "GOARM",
    "GOARM64",
    "GOMIPS",
    "GOMIPS64",
    "GOPPC64",
    "GORISCV64",
];

/// What a Go program says of its build. Before Go 1.18 none says more than that it is one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Go {
    /// The toolchain.
    pub version: Option<String>,
    /// Settings by name: `GOARCH`, `GOARM` and the like.
    pub settings: Vec<(String, String)>,
}

impl Go {
    /// A setting's value, without what follows a comma.
    pub fn setting(&self, key: &str) -> Option<&str> {
        let (_, value) = self.settings.iter().find(|(name, _)| name == key)?;
        value.split(',').next()
    }

    /// `GOAMD64` as a number.
    pub fn amd64_level(&self) -> Option<u8> {
        match self.setting("GOAMD64")? {
            "v1" => Some(1),
            "v2" => Some(2),
            "v3" => Some(3),
            "v4" => Some(4),
            _ => None,
        }
    }

    /// The whole value of a setting: `v8.0,lse`.
    pub fn whole_setting(&self, key: &str) -> Option<&str> {
        let (_, value) = self.settings.iter().find(|(name, _)| name == key)?;
        Some(value)
    }

    /// `GOARM`, and whether floating point is computed without a unit for it.
    pub fn arm(&self) -> Option<(u8, bool)> {
        let number = self.setting("GOARM")?.parse().ok()?;
        let value = self.whole_setting("GOARM")?;
        // Without a word, 5 means software.
        let soft = value.ends_with(",softfloat") || number == 5 && !value.ends_with(",hardfloat");
        Some((number, soft))
    }
}

/// Reads it at its section, else searches the start of a segment.
pub(super) fn read(section: Option<u64>, data: Option<u64>, reader: &Reader<'_>) -> Option<Go> {
    let at = section.or_else(|| {
        let bytes = reader.up_to(data?, SEARCHED).ok()?;
        let step = bytes
            .chunks(16)
            .position(|chunk| chunk.starts_with(MAGIC))?;
        data?.checked_add(step as u64 * 16)
    })?;
    let header = reader.up_to(at, HEADER + 10 + 2 * LONGEST_VALUE).ok()?;
    if !header.starts_with(MAGIC) {
        return None;
    }
    let mut go = Go::default();
    if header.get(15).is_some_and(|flags| flags & 2 != 0) {
        inline(&mut go, at, &header, reader);
    }
    Some(go)
}

fn inline(go: &mut Go, at: u64, header: &[u8], reader: &Reader<'_>) -> Option<()> {
    let (length, start) = varint(header, HEADER)?;
    let after = start.checked_add(usize::try_from(length).ok()?)?;
    let version = header.get(start..after)?;
    go.version = text(version);
    let (length, start) = varint(header, after)?;
    let end = at.checked_add(start as u64)?.checked_add(length)?;
    let tail = length.min(LONGEST_TAIL);
    let tail = reader.up_to(end - tail, usize::try_from(tail).ok()?).ok()?;
    for line in tail.split(|byte| *byte == b'\n') {
        let Some(line) = line.strip_prefix(b"build\t") else {
            continue;
        };
        let Some(equals) = line.iter().position(|byte| *byte == b'=') else {
            continue;
        };
        let (key, value) = line.split_at(equals);
        let known = KEYS.iter().find(|name| name.as_bytes() == key);
        if let Some(key) = known
            && let Some(value) = value.get(1..).and_then(text)
            && go.settings.len() < KEYS.len()
        {
            go.settings.push(((*key).to_owned(), value));
        }
    }
    Some(())
}

/// Printable ASCII of a sensible length.
fn text(bytes: &[u8]) -> Option<String> {
    let plain = bytes.len() <= LONGEST_VALUE
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_graphic() || *byte == b' ');
    plain.then(|| String::from_utf8_lossy(bytes).into_owned())
}

/// A number of 7 bits a byte at an offset, and the offset after it.
fn varint(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut value = 0;
    for (place, byte) in bytes.get(at..)?.iter().enumerate().take(9) {
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((value, at + place + 1));
        }
    }
    None
}
