//! ELF files: what the kernel's loader and the program's own loader will look at.
//!
//! Layouts are the gABI's ("ELF Header", "Program Header", "Sections", "Note Section"); which
//! faults end an `execve` is `binfmt_elf.c`'s.

use super::bytes::{Gap, Layout, Reader};
use super::golang::{self, Go};

mod attributes;
mod machine;
mod notes;

pub use attributes::ArmAttributes;
use machine::EM_PPC64;
pub use machine::{EM_386, EM_AARCH64, EM_ARM, EM_X86_64};

/// The kernel takes no more bytes of program headers (`load_elf_phdrs`).
const MOST_PROGRAM_HEADERS: usize = 1 << 16;
/// The longest path the kernel takes for an interpreter (`PATH_MAX`).
const LONGEST_INTERPRETER: u64 = 4096;
/// Programs have a few dozen sections.
const MOST_SECTIONS: usize = 1024;
const MOST_NOTES: usize = 16;
const LONGEST_NOTE: u64 = 16 << 10;
const LONGEST_ATTRIBUTES: u64 = 16 << 10;
const LONGEST_NAMES: u64 = 64 << 10;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const PT_GNU_PROPERTY: u32 = 0x6474_e553;
const SHT_ARM_ATTRIBUTES: u32 = 0x7000_0003;
const SHT_NOBITS: u32 = 8;

/// `EF_ARM_EABIMASK`, and the bits that tell how floating-point arguments travel.
const EF_ARM_EABI: u32 = 0xff00_0000;
const EF_ARM_ABI_FLOAT_HARD: u32 = 0x400;
const EF_ARM_ABI_FLOAT_SOFT: u32 = 0x200;

/// `e_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// 1: compiled, not linked.
    Relocatable,
    /// 2: a program at a fixed address.
    Executable,
    /// 3: a position-independent program, or a shared library.
    Dynamic,
    /// 4: a dead program's memory.
    Core,
    /// Anything else.
    Other(u16),
}

/// A segment that the kernel maps (`PT_LOAD`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// `p_offset`
    pub offset: u64,
    /// `p_vaddr`
    pub address: u64,
    /// `p_filesz`
    pub file_size: u64,
    /// `p_memsz`
    pub memory_size: u64,
    /// `p_align`
    pub align: u64,
    /// `p_flags`: 1 execute, 2 write, 4 read.
    pub flags: u32,
}

/// How a 32-bit Arm program passes floating-point arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatAbi {
    /// In the core's registers; runs with and without a floating-point unit.
    Soft,
    /// In registers of the floating-point unit.
    Hard,
}

/// Something about the file that hinders every kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// No kernel starts it; otherwise it is only doubtful.
    pub certain: bool,
    /// What is wrong, after "the file".
    pub text: &'static str,
}

/// Parts of a file that its source could not give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unread {
    /// Sections: attributes and build information may be missing.
    Sections,
    /// What the kernel looks at.
    Segments,
}

/// What an ELF file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// `EI_CLASS` is 2.
    pub wide: bool,
    /// `EI_DATA` is 1.
    pub little: bool,
    /// `EI_OSABI`
    pub os_abi: u8,
    /// `e_type`
    pub kind: Type,
    /// `e_machine`
    pub machine: u16,
    /// `e_flags`
    pub flags: u32,
    /// `e_entry`
    pub entry: u64,
    /// The segments, in the file's order.
    pub loads: Vec<Load>,
    /// The path of its loader, as in the file.
    pub interpreter: Option<Vec<u8>>,
    /// Where its dynamic section is, if it has one.
    pub dynamic: Option<u64>,
    /// What the attributes of a 32-bit Arm file say.
    pub arm: Option<ArmAttributes>,
    /// The x86-64 level it declares as needed, 1 to 4. Few files declare any.
    pub x86_level: Option<u8>,
    /// The oldest kernel that its C library supports; new ones do not insist (glibc 2.36).
    pub oldest_kernel: Option<(u32, u32, u32)>,
    /// Another system that it is marked for.
    pub system: Option<&'static str>,
    /// Go's build information.
    pub go: Option<Go>,
    /// The first fault in its structure.
    pub fault: Option<Fault>,
    /// The segments go beyond the end of the file, up to this offset.
    pub cut_off: Option<u64>,
    /// Where in the file its first instruction stands, or the section that its loader reads first.
    pub first_needed: Option<u64>,
    /// What could not be read.
    pub unread: Option<Unread>,
}

impl Elf {
    /// Reads a file whose first bytes are `head`, filled up with zeros as the kernel does it
    /// (so that a header may be cut short where it only has zeros).
    pub(super) fn read(head: &[u8], reader: &Reader<'_>) -> Option<Elf> {
        let class = *head.get(4)?;
        let data = *head.get(5)?;
        let layout = Layout {
            wide: class == 2,
            little: data != 2,
        };
        let kind = match layout.u16(head, 16)? {
            1 => Type::Relocatable,
            2 => Type::Executable,
            3 => Type::Dynamic,
            4 => Type::Core,
            other => Type::Other(other),
        };
        let mut elf = Elf {
            wide: layout.wide,
            little: layout.little,
            os_abi: *head.get(7)?,
            kind,
            machine: layout.u16(head, 18)?,
            flags: layout.u32(head, if layout.wide { 48 } else { 36 })?,
            entry: layout.word(head, 24, 24)?,
            loads: Vec::new(),
            interpreter: None,
            dynamic: None,
            arm: None,
            x86_level: None,
            oldest_kernel: None,
            system: None,
            go: None,
            fault: None,
            cut_off: None,
            first_needed: None,
            unread: None,
        };
        elf.system = match elf.os_abi {
            2 => Some("NetBSD"),
            6 => Some("Solaris"),
            9 => Some("FreeBSD"),
            12 => Some("OpenBSD"),
            _ => None,
        };
        if !matches!(class, 1 | 2) || !matches!(data, 1 | 2) {
            elf.doubt("has a header that names no class or byte order");
        }
        if matches!(elf.kind, Type::Executable | Type::Dynamic) {
            elf.segments(layout, head, reader);
        }
        elf.sections(layout, head, reader);
        Some(elf)
    }

    fn fail(&mut self, text: &'static str) {
        if self.fault.as_ref().is_none_or(|fault| !fault.certain) {
            self.fault = Some(Fault {
                certain: true,
                text,
            });
        }
    }

    fn doubt(&mut self, text: &'static str) {
        self.fault.get_or_insert(Fault {
            certain: false,
            text,
        });
    }

    fn gap(&mut self, gap: Gap, text: &'static str) {
        match gap {
            Gap::End => self.fail(text),
            Gap::Unavailable => self.unread = Some(Unread::Segments),
        }
    }

    fn segments(&mut self, layout: Layout, head: &[u8], reader: &Reader<'_>) {
        let size = if layout.wide { 56 } else { 32 };
        let field = |wide, narrow| layout.u16(head, if layout.wide { wide } else { narrow });
        let start = layout.word(head, 32, 28).unwrap_or_default();
        let entry_size = field(54, 42).map_or(0, usize::from);
        let length = size * field(56, 44).map_or(0, usize::from);
        if entry_size != size || length == 0 {
            self.fail("has no program headers of the right size");
            return;
        }
        if length > MOST_PROGRAM_HEADERS {
            self.fail("has more than 64 KiB of program headers");
            return;
        }
        let table = match reader.exactly(start, length) {
            Ok(table) => table,
            Err(gap) => return self.gap(gap, "ends before its program headers"),
        };
        let mut notes = 0;
        for header in table.chunks_exact(size) {
            let Some((kind, load)) = segment(layout, header) else {
                continue;
            };
            match kind {
                PT_LOAD => self.loads.push(load),
                PT_DYNAMIC => {
                    self.dynamic.get_or_insert(load.offset);
                }
                PT_INTERP if self.interpreter.is_none() => self.read_interpreter(load, reader),
                PT_NOTE | PT_GNU_PROPERTY if notes < MOST_NOTES => {
                    notes += 1;
                    self.read_notes(layout, load, reader);
                }
                _ => {}
            }
        }
        self.extent(reader);
    }

    fn read_interpreter(&mut self, at: Load, reader: &Reader<'_>) {
        if !(2..=LONGEST_INTERPRETER).contains(&at.file_size) {
            return self.fail("has a loader's path of an impossible length");
        }
        let length = usize::try_from(at.file_size).unwrap_or_default();
        match reader.exactly(at.offset, length) {
            Ok(path) if path.last() == Some(&0) => {
                let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
                self.interpreter = Some(path.to_vec());
            }
            Ok(_) => self.fail("has a loader's path without an end"),
            Err(gap) => self.gap(gap, "ends before its loader's path"),
        }
    }

    fn read_notes(&mut self, layout: Layout, at: Load, reader: &Reader<'_>) {
        let length = usize::try_from(at.file_size.min(LONGEST_NOTE)).unwrap_or_default();
        match reader.up_to(at.offset, length) {
            Ok(bytes) => notes::read(self, layout, &bytes, at.align),
            Err(_) => self.unread = Some(Unread::Segments),
        }
    }

    /// Does the file hold what its segments promise, and is its first instruction in one?
    fn extent(&mut self, reader: &Reader<'_>) {
        if self.loads.is_empty() {
            return self.fail("has nothing to load");
        }
        let end = self
            .loads
            .iter()
            .map(|load| load.offset.saturating_add(load.file_size))
            .max();
        self.cut_off = end.filter(|end| reader.size().is_some_and(|size| *end > size));
        let entry = self.loads.iter().find(|load| {
            let into = self.entry.checked_sub(load.address);
            into.is_some_and(|into| into < load.file_size)
        });
        self.first_needed = if self.interpreter.is_some() {
            self.dynamic
        } else {
            entry.and_then(|load| load.offset.checked_add(self.entry - load.address))
        };
        // The largest page: what a page holds beyond its segment is mapped, too.
        let page = 0xffff;
        let mapped = self.loads.iter().any(|load| {
            let end = load.address.saturating_add(load.memory_size) | page;
            (load.address & !page..=end).contains(&self.entry)
        });
        let executable = self.loads.iter().any(|load| {
            let into = self.entry.checked_sub(load.address);
            load.flags & 1 != 0 && into.is_some_and(|into| into < load.file_size)
        });
        let impossible = self.loads.iter().any(|load| {
            load.file_size > load.memory_size
                || load.address.checked_add(load.memory_size).is_none()
        });
        if impossible {
            self.fail("has a segment of an impossible size or address");
        } else if self.interpreter.is_none() && !mapped {
            self.fail("starts at an address that it does not load");
        } else if self.interpreter.is_none()
            && self.entry != 0
            && !executable
            && !self.starts_by_descriptor()
        {
            self.doubt("starts where it has no code");
        } else if !self.is_in_order() {
            self.doubt(
                "has segments that overlap, are out of order or lie beyond the usual addresses",
            );
        } else if self.kind == Type::Dynamic && self.entry == 0 && self.interpreter.is_none() {
            self.doubt("looks like a shared library");
        }
    }

    /// In the first ABI of 64-bit PowerPC `e_entry` is the address of a pair of pointers.
    fn starts_by_descriptor(&self) -> bool {
        self.machine == EM_PPC64 && self.flags & 3 != 2
    }

    /// Segments stand in the order of their addresses (gABI, "Loadable Segment"), within what
    /// every kernel gives to programs.
    fn is_in_order(&self) -> bool {
        let highest = if self.wide { 1 << 47 } else { 3 << 30 };
        let mut end = 0;
        self.loads.iter().all(|load| {
            let follows = load.address >= end;
            end = load.address.saturating_add(load.memory_size);
            follows && end <= highest
        })
    }

    /// The sections: nothing needs them to run, so what is missing is only not known.
    fn sections(&mut self, layout: Layout, head: &[u8], reader: &Reader<'_>) {
        let size = if layout.wide { 64 } else { 40 };
        let field = |wide, narrow| {
            let field = layout.u16(head, if layout.wide { wide } else { narrow });
            field.map_or(0, usize::from)
        };
        let start = layout.word(head, 40, 32).unwrap_or_default();
        let count = field(60, 48).min(MOST_SECTIONS);
        let table = if start == 0 || field(58, 46) != size || count == 0 {
            Vec::new()
        } else {
            reader.up_to(start, size * count).unwrap_or_else(|_| {
                self.unread = self.unread.max(Some(Unread::Sections));
                Vec::new()
            })
        };
        let sections: Vec<Section> = table
            .chunks_exact(size)
            .filter_map(|header| section(layout, header))
            .collect();
        let names = sections
            .get(field(62, 50))
            .and_then(|names| names.read(reader, LONGEST_NAMES))
            .unwrap_or_default();
        if self.machine == EM_ARM
            && let Some(at) = sections
                .iter()
                .find(|section| section.kind == SHT_ARM_ATTRIBUTES)
        {
            match at.read(reader, LONGEST_ATTRIBUTES) {
                Some(bytes) => self.arm = attributes::read(layout, &bytes),
                None => self.unread = self.unread.max(Some(Unread::Sections)),
            }
        }
        let info = sections
            .iter()
            .find(|section| section.is_named(&names, golang::SECTION))
            .filter(|section| section.kind != SHT_NOBITS)
            .map(|section| section.offset);
        // Without sections it stands at the start of the first segment that is not code.
        let data = self
            .loads
            .iter()
            .filter(|_| names.is_empty())
            .find(|load| load.flags & 3 == 2 && load.file_size > 0)
            .map(|load| load.offset);
        if let Some(found) = golang::read(info, data, reader) {
            self.go = Some(found);
        }
    }

    /// The OCI name of its architecture, where it has one.
    pub fn architecture(&self) -> Option<&'static str> {
        machine::architecture(self.machine, self.wide, self.little)
    }

    /// Its machine in words.
    pub fn machine_name(&self) -> String {
        machine::describe(self.machine, self.wide, self.little)
    }

    /// Another architecture with the same machine number and byte order: the class is odd.
    pub fn architecture_by_number(&self) -> Option<&'static str> {
        machine::architecture(self.machine, !self.wide, self.little)
    }

    /// Read the other way round, the machine number makes sense.
    pub(super) fn is_swapped(&self) -> bool {
        !machine::is_known(self.machine) && machine::is_known(self.machine.swap_bytes())
    }

    /// It names no loader: the kernel starts it directly. Position-independent ones have a dynamic
    /// section all the same.
    pub fn is_static(&self) -> bool {
        self.interpreter.is_none()
    }

    /// The ABI version of a 32-bit Arm file; 0 is the one before EABI.
    pub fn arm_eabi(&self) -> Option<u32> {
        (self.machine == EM_ARM).then_some((self.flags & EF_ARM_EABI) >> 24)
    }

    /// How a 32-bit Arm program passes floating-point arguments. `None`: it does not say, as
    /// static programs and Go's often do.
    pub fn float_abi(&self) -> Option<FloatAbi> {
        let told = |flag| self.machine == EM_ARM && self.flags & flag != 0;
        match self.arm.as_ref().and_then(|arm| arm.vfp_args) {
            _ if told(EF_ARM_ABI_FLOAT_HARD) => Some(FloatAbi::Hard),
            _ if told(EF_ARM_ABI_FLOAT_SOFT) => Some(FloatAbi::Soft),
            Some(1) => Some(FloatAbi::Hard),
            // 0 is the default, also of objects that pass no such arguments.
            _ => None,
        }
    }

    /// Can every segment be mapped with pages of this size? The offset in the file and the
    /// address must be the same within a page; `binfmt_elf.c` (`elf_map`) asks for no more.
    pub fn fits_pages(&self, page: u64) -> bool {
        let mask = page.saturating_sub(1);
        self.loads
            .iter()
            .filter(|load| load.file_size > 0)
            .all(|load| load.address & mask == load.offset & mask)
    }

    /// Does a segment take rights away from one that shares a page with it?
    pub fn shares_pages(&self, page: u64) -> bool {
        let mask = page.saturating_sub(1);
        self.loads.windows(2).any(|pair| {
            let (Some(first), Some(second)) = (pair.first(), pair.last()) else {
                return false;
            };
            let last = first
                .address
                .saturating_add(first.memory_size.saturating_sub(1));
            last & !mask >= second.address & !mask
                && first.memory_size > 0
                && second.memory_size > 0
                && first.flags & !second.flags & 7 != 0
        })
    }

    /// The largest of the usual page sizes that its segments fit.
    pub fn largest_page(&self) -> Option<u64> {
        [65536, 16384, 4096]
            .into_iter()
            .find(|page| self.fits_pages(*page))
    }
}

fn segment(layout: Layout, header: &[u8]) -> Option<(u32, Load)> {
    let load = Load {
        offset: layout.word(header, 8, 4)?,
        address: layout.word(header, 16, 8)?,
        file_size: layout.word(header, 32, 16)?,
        memory_size: layout.word(header, 40, 20)?,
        align: layout.word(header, 48, 28)?,
        flags: layout.u32(header, if layout.wide { 4 } else { 24 })?,
    };
    Some((layout.u32(header, 0)?, load))
}

struct Section {
    name: usize,
    kind: u32,
    offset: u64,
    size: u64,
}

fn section(layout: Layout, header: &[u8]) -> Option<Section> {
    Some(Section {
        name: usize::try_from(layout.u32(header, 0)?).ok()?,
        kind: layout.u32(header, 4)?,
        offset: layout.word(header, 24, 16)?,
        size: layout.word(header, 32, 20)?,
    })
}

impl Section {
    fn read(&self, reader: &Reader<'_>, limit: u64) -> Option<Vec<u8>> {
        let length = usize::try_from(self.size.min(limit)).ok()?;
        reader.up_to(self.offset, length).ok()
    }

    fn is_named(&self, names: &[u8], name: &[u8]) -> bool {
        names
            .get(self.name..)
            .and_then(|rest| rest.strip_prefix(name))
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}
