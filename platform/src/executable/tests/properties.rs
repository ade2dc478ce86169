//! Hostile files: no panic, bounded reads, and no answer that depends on luck.

use std::cell::Cell;
use std::io;

use proptest::prelude::*;

use super::*;
use crate::executable::bytes::{MOST_BYTES, MOST_READS};

/// Counts what is asked of a file, and may lie about it.
struct Watched<'a> {
    bytes: &'a [u8],
    size: Option<u64>,
    /// The most it gives at once.
    step: usize,
    read: Cell<usize>,
    calls: Cell<usize>,
}

impl<'a> Watched<'a> {
    fn new(bytes: &'a [u8], size: Option<u64>, step: usize) -> Self {
        Watched {
            bytes,
            size,
            step,
            read: Cell::new(0),
            calls: Cell::new(0),
        }
    }

    fn is_bounded(&self) -> bool {
        self.read.get() <= MOST_BYTES && self.calls.get() <= MOST_READS
    }
}

impl Bytes for Watched<'_> {
    fn size(&self) -> Option<u64> {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(self.step);
        let count = self.bytes.read_at(offset, &mut buffer[..length])?;
        self.read.set(self.read.get() + count);
        self.calls.set(self.calls.get() + 1);
        Ok(count)
    }
}

fn hosts() -> Vec<Host> {
    let names = [
        "amd64 v1",
        "arm64 16k",
        "arm64 unobserved",
        "arm v6",
        "emulated arm",
        "s390x",
        "riscv64",
    ];
    names
        .iter()
        .map(|name| host(name))
        .chain([emulating("F"), emulating("")])
        .collect()
}

fn judged(needs: &Needs, hosts: &[Host]) -> Vec<Verdict> {
    let _ = (needs.describe(), needs.platform());
    for host in hosts {
        // A file that is its own interpreter and loader.
        let judgement = judge_with(needs, host, &mut |_| Found::File(Box::new(needs.clone())));
        assert!(judgement.chain.len() <= DEEPEST + 1);
    }
    hosts.iter().map(|host| judge(needs, host)).collect()
}

/// Files that have everything in them.
fn rich() -> Vec<Vec<u8>> {
    let tag = super::build::note("GNU", 1, &[0; 16], 4, true);
    vec![
        Program::amd64()
            .loader("/lib64/ld-linux-x86-64.so.2")
            .needs_isa(4)
            .note(4, 4, tag.clone())
            .go(&["GOAMD64=v2"])
            .write(),
        Program::arm()
            .loader("/lib/ld-linux-armhf.so.3")
            .attributes(&[(6, 10), (28, 1)])
            .go(&["GOARM=7"])
            .note(4, 4, tag)
            .write(),
        Program::other(22, true, false)
            .go(&["GOARCH=s390x"])
            .write(),
        Program::arm64().only_4k().write(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_bytes(start in prop::sample::select(vec![&b""[..], b"\x7fELF", b"\x7fELF\x02\x01\x01", b"\x7fELF\x01\x02", b"#!", b"MZ", b"\xca\xfe\xba\xbe", b"\0asm"]),
        rest in prop::collection::vec(any::<u8>(), 0..700)) {
        let bytes = [start, &rest].concat();
        let watched = Watched::new(&bytes, None, usize::MAX);
        let needs = Needs::read(&watched);
        prop_assert!(watched.is_bounded());
        judged(&needs, &hosts());
    }

    #[test]
    fn mutated_programs(which in 0usize..4, changes in prop::collection::vec((0usize..0x200, any::<u8>()), 0..8), far in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8)) {
        let mut bytes = rich().swap_remove(which);
        for (at, value) in changes {
            bytes[at] = value;
        }
        for (at, value) in far {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let watched = Watched::new(&bytes, Some(bytes.len() as u64), usize::MAX);
        let needs = Needs::read(&watched);
        prop_assert!(watched.is_bounded());
        judged(&needs, &hosts());
    }

    /// A file that is cut off says so, or says nothing; it is never better than the whole.
    #[test]
    fn truncated_programs(which in 0usize..4, at in any::<prop::sample::Index>()) {
        let whole = rich().swap_remove(which);
        let length = at.index(whole.len());
        let hosts = hosts();
        let complete = judged(&read(&whole), &hosts);
        let cut = judged(&read(&whole[..length]), &hosts);
        for (complete, cut) in complete.iter().zip(&cut) {
            // What only makes it worse may be in the part that is missing.
            prop_assert!(length >= 0x900 || !cut.runs() || complete.runs(), "{complete} became {cut}");
        }
    }

    /// A source that gives little at a time, or lies about the size, changes nothing but what is known.
    #[test]
    fn slow_and_lying_sources(which in 0usize..4, step in 1usize..5000, size in prop::option::of(any::<u64>())) {
        let bytes = rich().swap_remove(which);
        let slow = Watched::new(&bytes, Some(bytes.len() as u64), step.max(64));
        prop_assert_eq!(Needs::read(&slow), read(&bytes));
        prop_assert!(slow.is_bounded());
        let lying = Watched::new(&bytes, size, step);
        judged(&Needs::read(&lying), &hosts());
        prop_assert!(lying.is_bounded());
    }

    /// What another machine's header says is never called native.
    #[test]
    fn no_foreign_machine_is_native(machine in any::<u16>(), wide in any::<bool>(), little in any::<bool>()) {
        let needs = read(&Program::other(machine, wide, little).write());
        for name in ["amd64 v3", "arm64", "s390x", "riscv64"] {
            let host = host(name);
            let verdict = judge(&needs, &host);
            let own = needs.elf().and_then(Elf::architecture) == Some(host.kernel.as_str());
            prop_assert_eq!(verdict == Verdict::Native, own, "{} on {}: {}", machine, name, verdict);
        }
    }

    /// The page rule, against the definition.
    #[test]
    fn pages_by_their_definition(offset in 0u64..0x800, address in 0x40_0000u64..0x48_0000, power in 12u32..17) {
        let page = 1u64 << power;
        let found = elf(&Program::arm64().loads(&[(offset, address, 8, 8, 5)]).write());
        prop_assert_eq!(found.fits_pages(page), address.abs_diff(offset) % page == 0);
    }
}

/// Claims to give more than it was asked for.
struct Boaster;
impl Bytes for Boaster {
    fn size(&self) -> Option<u64> {
        Some(u64::MAX)
    }
    fn read_at(&self, _: u64, buffer: &mut [u8]) -> io::Result<usize> {
        buffer.fill(0xff);
        Ok(usize::MAX)
    }
}

/// Is interrupted for ever.
struct Broken;
impl Bytes for Broken {
    fn size(&self) -> Option<u64> {
        Some(4096)
    }
    fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Interrupted.into())
    }
}

/// Every length of a small program, and sources that do not keep to the rules.
#[test]
fn every_length() {
    let hosts = hosts();
    let bytes = rich().swap_remove(1);
    for length in 0..bytes.len() {
        judged(&read(&bytes[..length]), &hosts[..2]);
    }
    assert_eq!(
        Needs::read(&Boaster).kind,
        Kind::Text {
            hidden_script: false
        }
    );
    assert_eq!(Needs::read(&Broken).kind, Kind::Unreadable);
    assert_eq!(told_of_unreadable(), "unknown");
}

fn told_of_unreadable() -> &'static str {
    let nothing = Head {
        bytes: b"",
        size: None,
    };
    judge(&Needs::read(&nothing), &host("amd64 v1")).name()
}
