//! Repairs on a real containerd, where the command line does not lead.

use std::{fs, path::PathBuf, sync::Mutex};

use edgepull::{
    asked::{Asked, Reader},
    error::{Error, Result},
    event::Events,
    keep::{AGENT, Repair, Sound, Verdict, recheck},
    kind::Kind,
    pull::{Need, Room},
    registry::{Client, Settings},
    resolve::Want,
};

use crate::{
    lab::{Lab, pull, reference, request},
    made::TestImage,
    runtime,
};

#[derive(Debug, Default)]
struct Keeper {
    refuses: bool,
    needs: Mutex<Vec<Need>>,
}

impl Room for Keeper {
    fn ask(&self, need: Need) -> Result<()> {
        self.needs.lock().expect("not poisoned").push(need);
        if self.refuses {
            return Err(Error::new(Kind::NoSpace, "there is no room"));
        }
        Ok(())
    }
}

fn want(platform: &str) -> Want {
    match Asked::read(platform, Reader::default()).expect("a platform") {
        Asked::One(want) => *want,
        Asked::All => panic!("one platform"),
    }
}

/// Snapshots are a namespace's own: that one's are sound says nothing of another's.
#[test]
fn what_is_sound_in_one_namespace_is_looked_at_in_the_other() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::two_layers(52);
        let source = image.source();
        let name = reference("r.example/app:1");
        let (want, mut sound) = (want("linux/amd64"), Sound::default());
        for (namespace, verdict) in [("default", Verdict::Sound), ("other", Verdict::Damaged)] {
            pull(&lab, namespace, &request(&name, &image.choice, &source))
                .await
                .expect("a pull");
            if verdict == Verdict::Damaged {
                // The newest of the two that have it.
                let file = largest(&lab);
                fs::write(&file, b"").expect("emptied");
            }
            let engine = lab.engine(namespace).await;
            let target = image.choice.target();
            let report = recheck(&engine, "overlayfs", target, &want, &mut sound);
            let report = report.await.expect("an answer");
            assert_eq!(report.verdict(), verdict, "{namespace}: {report:?}");
        }
    });
}

/// An image that is here for another platform only is no sound one for this.
#[test]
fn what_was_looked_at_instead_is_told() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::two_layers(53);
        let source = image.source();
        let name = reference("r.example/app:1");
        pull(&lab, "default", &request(&name, &image.choice, &source))
            .await
            .expect("a pull");
        let engine = lab.engine("default").await;
        let target = image.choice.target();
        for (platform, verdict) in [
            ("linux/amd64", Verdict::Sound),
            ("linux/s390x", Verdict::Unchecked),
        ] {
            let mut sound = Sound::default();
            let want = want(platform);
            let report = recheck(&engine, "overlayfs", target, &want, &mut sound).await;
            let report = report.expect("an answer");
            assert_eq!(report.verdict(), verdict, "{report:?}");
            let reasons: Vec<&str> = report.unchecked.iter().map(|u| &*u.reason).collect();
            let told = reasons
                .iter()
                .any(|reason| reason.contains("linux/s390x") && reason.contains("linux/amd64"));
            assert_eq!(told, verdict == Verdict::Unchecked, "{reasons:?}");
        }
    });
}

/// Whoever repairs an image takes the views of others away, and files with them.
#[test]
fn what_is_taken_away_below_a_check_is_no_damage() {
    runtime().block_on(async {
        let lab = Lab::start();
        let image = TestImage::large(54, 32 << 20);
        let source = image.source();
        let name = reference("r.example/app:1");
        pull(&lab, "default", &request(&name, &image.choice, &source))
            .await
            .expect("a pull");
        fs::write(largest(&lab), b"").expect("emptied");
        let engine = lab.engine("default").await;
        let (want, mut sound) = (want("linux/amd64"), Sound::default());
        let target = image.choice.target();
        let check = recheck(&engine, "overlayfs", target, &want, &mut sound);
        let take = async {
            loop {
                let all = engine.snapshots("overlayfs").await.expect("a list");
                if let Some(view) = all.iter().find(|one| one.name.contains("recheck")) {
                    let removed = engine.remove_snapshot_named("overlayfs", &view.name);
                    return removed.await.expect("removed");
                }
            }
        };
        let (report, ()) = tokio::join!(check, take);
        let report = report.expect("an answer");
        assert_eq!(report.verdict(), Verdict::Unchecked, "{report:?}");
    });
}

/// The largest file of all unpacked layers.
fn largest(lab: &Lab) -> PathBuf {
    let mut found = Vec::new();
    let mut open = vec![lab.path("root/io.containerd.snapshotter.v1.overlayfs/snapshots")];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).expect("a directory").flatten() {
            match entry.file_type().expect("a kind") {
                kind if kind.is_dir() => open.push(entry.path()),
                kind if kind.is_file() => {
                    found.push((entry.metadata().expect("there").len(), entry.path()));
                }
                _ => {}
            }
        }
    }
    found.into_iter().max().expect("a file").1
}

#[test]
fn a_repair_asks_for_the_room_that_it_takes_before_it_takes_anything_away() {
    runtime().block_on(async {
        let lab = Lab::start();
        let length = 1 << 20;
        let image = TestImage::large(51, length);
        let source = image.source();
        let name = reference("r.example/app:1");
        pull(&lab, "default", &request(&name, &image.choice, &source))
            .await
            .expect("a pull");
        let engine = lab.engine("default").await;
        let record = engine.image("r.example/app:1").await.expect("an answer");
        let record = record.expect("a record");
        let client = Client::new(Settings::default());
        let (want, events, locks) = (want("linux/amd64"), Events::none(), lab.path("locks"));
        let mend = async |room: &Keeper| {
            let repair = Repair {
                engine: &engine,
                snapshotter: "overlayfs",
                client: &client,
                want: &want,
                events: &events,
                state_dir: &locks,
                managed_by: AGENT,
                room: Some(room),
            };
            let ended = repair.image(&name, &record, &mut Sound::default()).await;
            let needs = room.needs.lock().expect("not poisoned").clone();
            (ended.expect("an answer"), needs)
        };
        let snapshots = || lab.ctr("default", &["snapshots", "ls"]);
        let before = snapshots();
        let (ended, needs) = mend(&Keeper::default()).await;
        assert_eq!(ended.verdict, Verdict::Sound, "{ended:?}");
        assert!(needs.is_empty(), "nothing to do, nothing to ask");

        // What a power cut took has to be had again.
        let file = largest(&lab);
        fs::write(&file, b"").expect("emptied");
        let full = Keeper {
            refuses: true,
            ..Keeper::default()
        };
        let (ended, needs) = mend(&full).await;
        assert_eq!(ended.error.expect("no room").kind(), Kind::NoSpace);
        assert_eq!(snapshots(), before, "nothing is taken away");
        let all = Need {
            fetch: 0,
            unpack: length as u64,
        };
        assert_eq!(needs, [all]);

        let (ended, _) = mend(&Keeper::default()).await;
        assert_eq!(ended.verdict, Verdict::Repaired, "{ended:?}");
        // A file that is only wrong takes no more than it has.
        let file = largest(&lab);
        let mut content = fs::read(&file).expect("read");
        content[0] ^= 1;
        fs::write(&file, content).expect("written");
        let (ended, needs) = mend(&Keeper::default()).await;
        assert_eq!(ended.verdict, Verdict::Repaired, "{ended:?}");
        assert_eq!(needs, [Need::default()]);
    });
}
