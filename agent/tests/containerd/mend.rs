//! Repairs on a real containerd, where the command line does not lead.

use std::{fs, path::PathBuf, sync::Mutex};

use edgepull::{
    asked::{Asked, Reader},
    error::{Error, Result},
    event::Events,
    keep::{AGENT, Repair, Sound, Verdict},
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

fn want() -> Want {
    match Asked::read("linux/amd64", Reader::default()).expect("a platform") {
        Asked::One(want) => *want,
        Asked::All => panic!("one platform"),
    }
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
        let (want, events, locks) = (want(), Events::none(), lab.path("locks"));
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
