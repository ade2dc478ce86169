//! A small writer of ELF files, written from the specifications and not from the reader.

use crate::executable::{EM_386, EM_AARCH64, EM_ARM, EM_X86_64};

/// A segment: offset, address, size in the file and in memory, flags.
pub(super) type Segment = (u64, u64, u64, u64, u32);

/// An ELF file to be written.
#[derive(Clone)]
pub(super) struct Program {
    pub(super) wide: bool,
    pub(super) little: bool,
    pub(super) os_abi: u8,
    pub(super) kind: u16,
    pub(super) machine: u16,
    pub(super) flags: u32,
    pub(super) entry: u64,
    pub(super) loads: Vec<Segment>,
    pub(super) interpreter: Option<&'static str>,
    /// Segment type, alignment, content.
    pub(super) notes: Vec<(u32, u64, Vec<u8>)>,
    /// Name, type, content.
    pub(super) sections: Vec<(&'static str, u32, Vec<u8>)>,
}

/// Owner, type, content of a note.
pub(super) fn note(owner: &str, kind: u32, content: &[u8], align: usize, little: bool) -> Vec<u8> {
    let word = |value: usize| number(value as u64, 4, little);
    let mut bytes = word(owner.len() + 1);
    bytes.extend(word(content.len()));
    bytes.extend(word(kind as usize));
    bytes.extend(owner.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(align), 0);
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(align), 0);
    bytes
}

/// The section of build attributes, with numbers for tags.
pub(super) fn attributes(pairs: &[(u8, u8)]) -> Vec<u8> {
    // A text before the numbers, as compilers write it.
    let mut inner = b"\x05cortex\0".to_vec();
    for (tag, value) in pairs {
        inner.extend([*tag, *value]);
    }
    let mut bytes = b"A".to_vec();
    bytes.extend(number(inner.len() as u64 + 5 + 6 + 4, 4, true));
    bytes.extend(b"aeabi\0\x01");
    bytes.extend(number(inner.len() as u64 + 5, 4, true));
    bytes.extend(inner);
    bytes
}

/// Go's build information, as it is written since 1.18.
pub(super) fn go(settings: &[&str]) -> Vec<u8> {
    let mut text = "0123456789abcdefpath\tcommand\n".to_owned();
    for setting in settings {
        text.push_str("build\t");
        text.push_str(setting);
        text.push('\n');
    }
    text.push_str("fedcba9876543210");
    let mut bytes = b"\xff Go buildinf:\x08\x02".to_vec();
    bytes.resize(32, 0);
    bytes.push(6);
    bytes.extend(b"go1.22");
    let length = u8::try_from(text.len() / 128).expect("a short text");
    bytes.extend([0x80 | (text.len() % 128).to_le_bytes()[0], length]);
    bytes.extend(text.as_bytes());
    bytes
}

fn number(value: u64, size: usize, little: bool) -> Vec<u8> {
    if little {
        value.to_le_bytes().into_iter().take(size).collect()
    } else {
        value.to_be_bytes().into_iter().skip(8 - size).collect()
    }
}

impl Program {
    fn new(machine: u16, wide: bool) -> Program {
        Program {
            wide,
            little: true,
            os_abi: 0,
            kind: 2,
            machine,
            flags: 0,
            entry: 0x40_0100,
            loads: vec![
                (0, 0x40_0000, 0x800, 0x800, 5),
                (0x800, 0x41_0800, 0x100, 0x300, 6),
            ],
            interpreter: None,
            notes: Vec::new(),
            sections: Vec::new(),
        }
    }

    pub(super) fn amd64() -> Program {
        Program::new(EM_X86_64, true)
    }

    pub(super) fn i386() -> Program {
        Program::new(EM_386, false)
    }

    pub(super) fn arm64() -> Program {
        Program::new(EM_AARCH64, true)
    }

    pub(super) fn arm() -> Program {
        Program::new(EM_ARM, false).flags(0x0500_0000)
    }

    pub(super) fn other(machine: u16, wide: bool, little: bool) -> Program {
        Program {
            little,
            ..Program::new(machine, wide)
        }
    }

    pub(super) fn flags(self, flags: u32) -> Program {
        Program { flags, ..self }
    }

    pub(super) fn kind(self, kind: u16) -> Program {
        Program { kind, ..self }
    }

    pub(super) fn entry(self, entry: u64) -> Program {
        Program { entry, ..self }
    }

    pub(super) fn loads(self, loads: &[Segment]) -> Program {
        Program {
            loads: loads.to_vec(),
            ..self
        }
    }

    /// Laid out for pages of 4 KiB only.
    pub(super) fn only_4k(self) -> Program {
        self.loads(&[
            (0, 0x40_0000, 0x800, 0x800, 5),
            (0x800, 0x40_1800, 0x100, 0x300, 6),
        ])
    }

    pub(super) fn loader(self, path: &'static str) -> Program {
        Program {
            interpreter: Some(path),
            ..self
        }
    }

    pub(super) fn note(mut self, kind: u32, align: u64, content: Vec<u8>) -> Program {
        self.notes.push((kind, align, content));
        self
    }

    /// A property note that says which x86-64 levels are needed.
    pub(super) fn needs_isa(self, bits: u32) -> Program {
        let mut content = number(0xc000_8002, 4, true);
        content.extend(number(4, 4, true));
        content.extend(number(u64::from(bits), 4, true));
        let align = if self.wide { 8 } else { 4 };
        content.resize(content.len().next_multiple_of(align), 0);
        let note = note("GNU", 5, &content, align, true);
        self.note(0x6474_e553, align as u64, note)
    }

    pub(super) fn section(mut self, name: &'static str, kind: u32, content: Vec<u8>) -> Program {
        self.sections.push((name, kind, content));
        self
    }

    pub(super) fn attributes(self, pairs: &[(u8, u8)]) -> Program {
        self.section(".ARM.attributes", 0x7000_0003, attributes(pairs))
    }

    pub(super) fn go(self, settings: &[&str]) -> Program {
        self.section(".go.buildinfo", 1, go(settings))
    }

    fn word(&self, value: u64) -> Vec<u8> {
        number(value, if self.wide { 8 } else { 4 }, self.little)
    }

    fn half(&self, value: usize) -> Vec<u8> {
        number(value as u64, 2, self.little)
    }

    fn quad(&self, value: u64) -> Vec<u8> {
        number(value, 4, self.little)
    }

    fn segment(
        &self,
        kind: u32,
        (offset, address, file, memory, flags): Segment,
        align: u64,
    ) -> Vec<u8> {
        let middle = [offset, address, address, file, memory];
        let middle: Vec<u8> = middle.iter().flat_map(|value| self.word(*value)).collect();
        let (kind, flags) = (self.quad(kind.into()), self.quad(flags.into()));
        if self.wide {
            [kind, flags, middle, self.word(align)].concat()
        } else {
            [kind, middle, flags, self.word(align)].concat()
        }
    }

    /// The file.
    pub(super) fn write(&self) -> Vec<u8> {
        let (header, entry, section) = if self.wide {
            (64, 56, 64)
        } else {
            (52, 32, 40)
        };
        let count =
            self.loads.len() + self.notes.len() + 2 * usize::from(self.interpreter.is_some());
        // What segments promise is there; all else follows.
        let loaded = self
            .loads
            .iter()
            .map(|load| load.0.saturating_add(load.2))
            .max()
            .unwrap_or(0);
        let loaded = usize::try_from(loaded.min(1 << 20)).expect("a small file");
        let mut rest: Vec<u8> = Vec::new();
        let start = (header + entry * count).max(loaded).next_multiple_of(16);
        let mut put = |content: &[u8]| {
            rest.resize(rest.len().next_multiple_of(16), 0);
            let at = start + rest.len();
            rest.extend(content);
            at as u64
        };
        let mut segments = Vec::new();
        if let Some(path) = self.interpreter {
            let length = path.len() as u64 + 1;
            let at = put(&[path.as_bytes(), b"\0"].concat());
            segments.push(self.segment(3, (at, at, length, length, 4), 1));
            let at = put(&[0; 16]);
            segments.push(self.segment(2, (at, at, 16, 16, 6), 8));
        }
        for load in &self.loads {
            segments.push(self.segment(1, *load, 0x1000));
        }
        for (kind, align, content) in &self.notes {
            let (at, length) = (put(content), content.len() as u64);
            segments.push(self.segment(*kind, (at, at, length, length, 4), *align));
        }
        let mut names = b"\0".to_vec();
        let mut table = vec![0; section];
        let mut add = |name: &str, kind: u32, at: u64, length: usize, names: &mut Vec<u8>| {
            let middle = [0, 0, at, length as u64]
                .map(|value| self.word(value))
                .concat();
            table.extend(
                [
                    self.quad(names.len() as u64),
                    self.quad(kind.into()),
                    middle,
                ]
                .concat(),
            );
            table.resize(table.len().next_multiple_of(section), 0);
            names.extend(name.as_bytes());
            names.push(0);
        };
        for (name, kind, content) in &self.sections {
            let at = put(content);
            add(name, *kind, at, content.len(), &mut names);
        }
        let length = names.len() + 10;
        let own = [names.as_slice(), b".shstrtab\0"].concat();
        let at = put(&own);
        add(".shstrtab", 3, at, length, &mut names);
        let table_at = put(&table);
        let sections = self.sections.len() + 2;

        let mut file = b"\x7fELF".to_vec();
        file.extend([
            if self.wide { 2 } else { 1 },
            if self.little { 1 } else { 2 },
            1,
            self.os_abi,
        ]);
        file.resize(16, 0);
        file.extend(self.half(self.kind.into()));
        file.extend(self.half(self.machine.into()));
        file.extend(self.quad(1));
        file.extend(self.word(self.entry));
        file.extend(self.word(header as u64));
        file.extend(self.word(table_at));
        file.extend(self.quad(self.flags.into()));
        for value in [header, entry, count, section, sections, sections - 1] {
            file.extend(self.half(value));
        }
        file.extend(segments.concat());
        file.resize(start, 0);
        file.extend(rest);
        file
    }
}
