//! Image files as block devices (loop(4), `linux/loop.h`): what containerd's blockfile snapshotter hands
//! over as a root file system, by a mount with the option `loop`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;

use crate::error::{Error, Result};

const SET_FD: libc::Ioctl = 0x4c00;
const CLR_FD: libc::Ioctl = 0x4c01;
const SET_STATUS64: libc::Ioctl = 0x4c04;
const CONFIGURE: libc::Ioctl = 0x4c0a;
const CTL_GET_FREE: libc::Ioctl = 0x4c82;

const READ_ONLY: u32 = 1;
/// The device goes with its last user.
const AUTOCLEAR: u32 = 4;

/// A device that is free may be somebody else's a moment later.
const ATTEMPTS: usize = 100;

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    file: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

// What the kernel copies.
const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);

/// A block device with a file behind it. It ends with this value and the mounts made from it.
#[derive(Debug)]
pub struct Loop {
    path: PathBuf,
    _device: File,
}

impl Loop {
    /// The file behind the first device that is free, as loop(4) has it done. A file or a device may hold
    /// up the caller for as long as its disk does.
    ///
    /// # Errors
    /// The file cannot be opened, there is no driver, or a call failed: which, on what, what the kernel
    /// said, and where somebody can do something about it, what.
    pub fn of(image: &Path, read_only: bool) -> Result<Loop> {
        let shown = image.display();
        let back = open(image, read_only)
            .map_err(|error| Error::io(format!("opening the image file {shown}"), error))?;
        let control = open(Path::new("/dev/loop-control"), false).map_err(|error| {
            let what = format!("{shown} is an image file, which takes a loop device: opening /dev/loop-control");
            let next = "load the kernel's module (`modprobe loop`), or use another snapshotter (overlayfs)";
            Error::io(what, format!("{error}; {next}"))
        })?;
        for _ in 0..ATTEMPTS {
            let number = number(&control, CTL_GET_FREE, 0).map_err(|errno| {
                Error::io(format!("finding a free loop device for {shown}"), errno)
            })?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = open(&path, read_only).map_err(|error| {
                let what = format!("opening {} for {shown}", path.display());
                let next =
                    "where /dev is no devtmpfs, its node has to be made (`mknod`, block, major 7)";
                Error::io(what, format!("{error}; {next}"))
            })?;
            match attach(&device, &back, image, read_only) {
                Ok(()) => {
                    return Ok(Loop {
                        path,
                        _device: device,
                    });
                }
                Err(Errno::EBUSY) => {}
                Err(errno) => {
                    let what = format!("putting {shown} behind {}", path.display());
                    return Err(Error::io(what, errno));
                }
            }
        }
        Err(Error::unknown(format!(
            "no loop device for {shown}: {ATTEMPTS} times another program took the free one first; start the container again"
        )))
    }

    /// The device.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn open(path: &Path, read_only: bool) -> std::io::Result<File> {
    File::options().read(true).write(!read_only).open(path)
}

fn attach(device: &File, back: &File, image: &Path, read_only: bool) -> nix::Result<()> {
    let config = Config {
        file: back.as_raw_fd().cast_unsigned(),
        block_size: 0,
        info: info(image, read_only),
        reserved: [0; 8],
    };
    match structure(device, CONFIGURE, &config) {
        Err(Errno::EINVAL | Errno::ENOTTY) => in_two_steps(device, back, &config.info),
        other => other,
    }
}

fn info(image: &Path, read_only: bool) -> Info {
    let mut info = Info {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: AUTOCLEAR | if read_only { READ_ONLY } else { 0 },
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    // For people who list devices; it ends with a zero.
    let name = image.as_os_str().as_encoded_bytes().iter().take(63);
    for (to, from) in info.file_name.iter_mut().zip(name) {
        *to = *from;
    }
    info
}

/// The same on Linux before 5.8.
fn in_two_steps(device: &File, back: &File, info: &Info) -> nix::Result<()> {
    number(device, SET_FD, back.as_raw_fd())?;
    structure(device, SET_STATUS64, info).inspect_err(|_| {
        let _ = number(device, CLR_FD, 0);
    })
}

/// An ioctl(2) that takes a number and gives one.
fn number(file: &File, request: libc::Ioctl, argument: i32) -> nix::Result<i32> {
    #[allow(unsafe_code, reason = "no library has these calls")]
    // SAFETY: the requests that come here take a number, so no memory is touched.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), request, libc::c_long::from(argument)) };
    Errno::result(done)
}

/// An ioctl(2) that reads a structure.
fn structure<T>(file: &File, request: libc::Ioctl, argument: &T) -> nix::Result<()> {
    #[allow(unsafe_code, reason = "no library has these calls")]
    // SAFETY: the structure is the one that the request reads, laid out as in `linux/loop.h` and of
    // its size, and outlives the call; none of these requests writes to it.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_ref(argument)) };
    Errno::result(done).map(drop)
}

#[cfg(test)]
pub mod testing {
    //! What the kernel says of its devices.
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::path::Path;
    use std::time::Duration;

    fn has(image: &Path) -> bool {
        let devices = std::fs::read_dir("/sys/block").unwrap().flatten();
        let mut files = devices.filter_map(|device| {
            std::fs::read_to_string(device.path().join("loop/backing_file")).ok()
        });
        files.any(|file| Path::new(file.trim_end()) == image)
    }

    /// Whether no device is of this file any more: udev may look at one for a moment.
    pub fn goes(image: &Path) -> bool {
        (0..250).any(|_| {
            let gone = !has(image);
            if !gone {
                std::thread::sleep(Duration::from_millis(20));
            }
            gone
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_file_becomes_a_device_for_as_long_as_it_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let bytes: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        std::fs::write(&image, &bytes).unwrap();
        for read_only in [true, false] {
            let device = Loop::of(&image, read_only).unwrap();
            assert_eq!(std::fs::read(device.path()).unwrap(), bytes);
            let name = device.path().file_name().unwrap();
            let place = Path::new("/sys/block").join(name);
            let told = |what: &str| std::fs::read_to_string(place.join(what)).unwrap();
            let behind = told("loop/backing_file");
            assert_eq!(Path::new(behind.trim_end()), image);
            assert_eq!(told("ro").trim(), if read_only { "1" } else { "0" });
            drop(device);
            assert!(testing::goes(&image), "{} stays", place.display());
        }
    }

    #[test]
    fn an_older_kernel_is_asked_in_two_steps() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::write(&image, vec![7; 1 << 16]).unwrap();
        let back = open(&image, false).unwrap();
        let control = open(Path::new("/dev/loop-control"), false).unwrap();
        // Other tests take devices, too.
        let device = (0..ATTEMPTS).find_map(|_| {
            let number = number(&control, CTL_GET_FREE, 0).unwrap();
            let device = open(Path::new(&format!("/dev/loop{number}")), false).unwrap();
            match in_two_steps(&device, &back, &info(&image, false)) {
                Err(Errno::EBUSY) => None,
                other => Some(other.map(|()| device).unwrap()),
            }
        });
        let mut read = Vec::new();
        let mut device = device.unwrap();
        std::io::Read::read_to_end(&mut device, &mut read).unwrap();
        assert_eq!(read, vec![7; 1 << 16]);
        drop(device);
        assert!(testing::goes(&image), "it is no device of its own accord");
    }

    #[test]
    fn what_is_no_image_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for place in [Path::new("/nowhere/image"), dir.path()] {
            let error = Loop::of(place, true).unwrap_err();
            let named = error.message().contains(place.to_str().unwrap());
            assert!(named, "{error}");
        }
    }
}
