//! What comes over the shim's socket: frames, and the calls in them.
#![no_main]

use std::rc::Rc;

use edgepull_shim::config::Config;
use edgepull_shim::publish::Publisher;
use edgepull_shim::task::Tasks;
use edgepull_shim::wire::ttrpc::{self, Answer, Call, Request, Service};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The tasks of a shim without containers, but for what would touch this machine.
struct Harmless(Tasks);

impl Service for Harmless {
    fn call(&self, mut request: Request, call: Call) -> Answer {
        if request.method == "Create" {
            request.method = "State".to_owned();
        }
        self.0.call(request, call)
    }
}

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let (mut ours, theirs) = UnixStream::pair().expect("a pair");
        let publisher = Publisher::new("fuzz", "");
        let service = Harmless(Tasks::new("fuzz", Config::default(), publisher));
        let served = tokio::task::spawn_local(ttrpc::serve(theirs, Rc::new(service)));
        ours.write_all(bytes).await.expect("written");
        ours.shutdown().await.expect("closed");
        // Whatever it was, every frame is read past, and the end of the stream is the end.
        served.await.expect("served");
        let mut answers = Vec::new();
        drop(ours.read_to_end(&mut answers).await);
    });
});
