//! Any file, in small and large reads, on several hosts, as its own interpreter and loader.
#![no_main]

use std::cell::Cell;
use std::io;
use std::sync::OnceLock;

use edgepull_platform::executable::{
    Bytes, DEEPEST, Found, Head, Needs, Verdict, judge, judge_with,
};
use edgepull_platform::{Facts, Host, detect};
use libfuzzer_sys::fuzz_target;

/// More than this is never read of a file.
const MOST: usize = 1 << 20;

struct Counted<'a> {
    bytes: &'a [u8],
    read: Cell<usize>,
    calls: Cell<usize>,
}

impl Bytes for Counted<'_> {
    fn size(&self) -> Option<u64> {
        self.bytes.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.bytes.read_at(offset, buffer)?;
        self.read.set(self.read.get() + count);
        self.calls.set(self.calls.get() + 1);
        Ok(count)
    }
}

fn hosts() -> &'static [Host] {
    static HOSTS: OnceLock<Vec<Host>> = OnceLock::new();
    let handler = "enabled\ninterpreter /qemu\nflags: F\noffset 0\n\
        magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";
    let files = [("proc/sys/fs/binfmt_misc/qemu", handler)];
    HOSTS.get_or_init(|| {
        [
            "uname_machine=x86_64\nuname_release=6.1.0\nAT_PAGESZ=4096",
            "uname_machine=aarch64\npersonality_per_linux32=ok\nAT_PAGESZ=16384",
            "uname_machine=aarch64",
            "uname_machine=armv6l",
            "uname_machine=armv7l",
            "uname_machine=i686",
            "uname_machine=s390x",
        ]
        .iter()
        .flat_map(|probes| {
            // Also one whose CPU is known, and lacks what programs may need.
            let cpu = match probes {
                probes if probes.contains("arm") || probes.contains("aarch64") => {
                    "Features : half thumb vfp crc32\nCPU implementer : 0x41\nCPU architecture: 8\n"
                }
                _ => "flags : fpu mmx sse\n",
            };
            let described = files.into_iter().chain([("proc/cpuinfo", cpu)]);
            let described = detect(&Facts::from_texts(probes, described)).ok();
            let plain = detect(&Facts::from_texts(probes, files)).expect("a host");
            [Some(plain), described].into_iter().flatten()
        })
        .collect()
    })
}

fuzz_target!(|input: &[u8]| {
    let counted = Counted {
        bytes: input,
        read: Cell::new(0),
        calls: Cell::new(0),
    };
    let needs = Needs::read(&counted);
    assert!(counted.read.get() <= MOST && counted.calls.get() <= 4096);
    assert!(!needs.describe().is_empty());
    let _ = needs.platform();
    let machine = needs.elf().and_then(|elf| elf.architecture());
    for host in hosts() {
        let verdict = judge(&needs, host);
        assert!(verdict != Verdict::Native || machine == Some(host.kernel.as_str()));
        let judgement = judge_with(&needs, host, &mut |_| Found::File(Box::new(needs.clone())));
        assert!(judgement.chain.len() <= DEEPEST + 1);
    }
    let half = Head {
        bytes: input.get(..input.len() / 2).unwrap_or_default(),
        size: Some(input.len() as u64),
    };
    let _ = judge(&Needs::read(&half), &hosts()[0]);
});
