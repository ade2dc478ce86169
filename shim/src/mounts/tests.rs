#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::loopback;

fn mount_now(mounts: &[Mount], root: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.unwrap().block_on(mount_all(mounts, root))
}

fn words(text: &[&str]) -> Vec<String> {
    text.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn options_are_read_as_fstab_has_them() {
    let parsed = parse(&words(&[
        "rbind",
        "ro",
        "rw",
        "ro",
        "rprivate",
        "lowerdir=/a",
    ]));
    assert_eq!(
        parsed.flags,
        MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY
    );
    assert_eq!(parsed.propagation, MsFlags::MS_PRIVATE | MsFlags::MS_REC);
    assert_eq!(parsed.data, ["lowerdir=/a"]);
    assert!(!parsed.image);
    let image = parse(&words(&["ro", "loop", "noload"]));
    assert!(image.image && image.data == ["noload"], "{image:?}");
}

#[test]
fn long_options_become_short() {
    let mut options = words(&["index=off", "lowerdir=/v/s/12/fs:/v/s/1/fs:/v/s/123/fs"]);
    assert_eq!(shorten(&mut options, 2), Some("/v/s".into()));
    assert_eq!(options[1], "lowerdir=12/fs:1/fs:123/fs");
    for lower in ["lowerdir=/a", "lowerdir=/a/b:/c/d", "lowerdir=a:b"] {
        assert_eq!(shorten(&mut words(&[lower]), 2), None, "{lower}");
    }
}

fn bind(source: &Path, options: &[&str]) -> Mount {
    Mount {
        kind: "bind".to_owned(),
        source: source.to_str().unwrap().to_owned(),
        target: String::new(),
        options: words(options),
    }
}

#[test]
fn mounts_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let (source, root) = (dir.path().join("source"), dir.path().join("root"));
    std::fs::create_dir(&source).unwrap();
    std::fs::create_dir(&root).unwrap();
    std::fs::write(source.join("f"), "x").unwrap();
    std::fs::create_dir(source.join("d")).unwrap();
    let over = Mount {
        target: "d".to_owned(),
        ..bind(&source, &["rbind"])
    };
    mount_now(&[bind(&source, &["rbind", "ro"]), over], &root).unwrap();
    assert!(root.join("f").exists() && root.join("d/f").exists());
    assert!(std::fs::write(root.join("g"), "").is_err(), "read-only");
    assert!(unmount(&root).is_ok(), "a busy one is detached");
    unmount_recursive(&root).unwrap();
    assert!(!root.join("f").exists());
    unmount_recursive(&root).unwrap();
    let climbing = Mount {
        target: "../x".to_owned(),
        ..bind(&source, &["rbind"])
    };
    assert!(mount_now(&[climbing], &root).is_err());
    let gone = bind(&dir.path().join("gone"), &["bind"]);
    let error = mount_now(&[gone], &root).unwrap_err();
    assert!(
        error.message().contains("gone") && error.message().contains("No such file"),
        "{error}"
    );
}

#[test]
fn an_image_file_is_mounted_through_a_device_that_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (content, root) = (dir.path().join("content"), dir.path().join("root"));
    std::fs::create_dir(&content).unwrap();
    std::fs::create_dir(&root).unwrap();
    std::fs::write(content.join("f"), "x").unwrap();
    let image = dir.path().join("image");
    File::create(&image).unwrap().set_len(4 << 20).unwrap();
    let mut mkfs = Command::new("/usr/sbin/mkfs.ext4");
    mkfs.arg("-q").arg("-d").arg(&content).arg(&image);
    assert!(mkfs.status().unwrap().success());
    let of = |options: &[&str]| Mount {
        kind: "ext4".to_owned(),
        ..bind(&image, options)
    };
    mount_now(&[of(&["loop", "ro", "noload"])], &root).unwrap();
    assert_eq!(std::fs::read(root.join("f")).unwrap(), b"x");
    assert!(std::fs::write(root.join("g"), "").is_err(), "read-only");
    unmount(&root).unwrap();
    mount_now(&[of(&["loop"])], &root).unwrap();
    std::fs::write(root.join("g"), "y").unwrap();
    unmount(&root).unwrap();
    assert!(!root.join("f").exists());
    assert!(loopback::testing::goes(&image), "the device stays");
    // Without the word it is no device, as the kernel says; and none is left behind.
    assert!(mount_now(&[of(&[])], &root).is_err());
    let other = Mount {
        kind: "xfs".to_owned(),
        ..of(&["loop"])
    };
    assert!(mount_now(&[other], &root).is_err());
    assert!(loopback::testing::goes(&image), "the device stays");
}

/// The file is a pipe without a writer, which holds up whoever opens it.
#[test]
fn a_mount_that_hangs_holds_up_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let (image, root) = (dir.path().join("image"), dir.path().join("root"));
    std::fs::create_dir(&root).unwrap();
    nix::unistd::mkfifo(&image, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let hangs = Mount {
        kind: "ext4".to_owned(),
        ..bind(&image, &["loop", "ro"])
    };
    child::testing::run(async move {
        let calls = [hangs];
        let mut hanging = std::pin::pin!(mount_all(&calls, &root));
        for _ in 0..100 {
            let moment = tokio::time::sleep(Duration::from_millis(1));
            tokio::select! {
                biased;
                done = &mut hanging => panic!("it does not hang: {done:?}"),
                () = moment => {}
            }
        }
        let _writer = File::options().write(true).open(&image).unwrap();
        let error = hanging.await.unwrap_err();
        assert!(error.message().contains("image"), "{error}");
    });
}

#[test]
fn an_overlay_of_many_layers_is_mounted() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    // tmpfs: an overlay may not lie on an overlay.
    let base = dir.path().join("base");
    std::fs::create_dir(&base).unwrap();
    let none: Option<&str> = None;
    mount(Some("tmpfs"), &base, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let mut lower = Vec::new();
    for n in 0..60 {
        let layer = base.join("long".repeat(20)).join(n.to_string()).join("fs");
        std::fs::create_dir_all(&layer).unwrap();
        std::fs::write(layer.join(n.to_string()), "").unwrap();
        lower.push(layer.to_str().unwrap().to_owned());
    }
    let overlay = Mount {
        kind: "overlay".to_owned(),
        source: "overlay".to_owned(),
        target: String::new(),
        options: vec![format!("lowerdir={}", lower.join(":"))],
    };
    let here = std::env::current_dir().unwrap();
    let result = mount_now(&[overlay], &root);
    let seen = (0..60)
        .filter(|n| root.join(n.to_string()).exists())
        .count();
    unmount(&root).unwrap();
    unmount(&base).unwrap();
    result.unwrap();
    assert_eq!(seen, 60);
    assert_eq!(std::env::current_dir().unwrap(), here, "of everybody else");
}

#[test]
fn file_systems_of_user_space_are_mounted_by_their_program() {
    assert_eq!(helper("fuse3.overlay"), Some(("mount.fuse3", "overlay")));
    assert_eq!(helper("fuse.x"), Some(("mount.fuse", "x")));
    assert_eq!(helper("overlay"), None);
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("helper");
    let told = dir.path().join("told");
    let script = format!(
        "#!/bin/sh\necho \"$@\" >{}\necho it is no disk\nexit $1\n",
        told.display()
    );
    std::fs::write(&program, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, mode).unwrap();
    let program = program.to_str().unwrap().to_owned();
    let asked = move |source: &str| Mount {
        kind: "fuse.x".to_owned(),
        source: source.to_owned(),
        target: String::new(),
        options: words(&["a=b", "ro"]),
    };
    child::testing::run(async move {
        let good = mount_by(&program, "x", &asked("0"), Path::new("/t")).await;
        assert_eq!(good, Ok(()));
        let error = mount_by(&program, "x", &asked("3"), Path::new("/t")).await;
        let message = error.unwrap_err().message().to_owned();
        assert!(
            message.ends_with("ended with status 3: it is no disk"),
            "{message}"
        );
    });
    let told = std::fs::read_to_string(told).unwrap();
    assert_eq!(told, "3 /t -o a=b -o ro -t x\n");
}
