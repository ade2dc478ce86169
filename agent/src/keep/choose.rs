//! Which image a record stands for, as the store alone can tell.

use edgepull_platform::Wanted;

use crate::{
    choice::Choice,
    containerd::{Engine, StoreSource},
    error::{Error, Result},
    kind::Kind,
    oci::{Descriptor, Digest, Document},
    resolve::{Want, all_platforms, resolve},
    source::Source,
};

/// The image below `target` that the store has: the one that `want` picks; where that one is
/// not there, the first other that is (it was pulled for another platform, perhaps), and
/// `true`. `not_found` or `store_damaged` where a document is missing or damaged.
pub(super) async fn choose(
    engine: &Engine,
    target: &Descriptor,
    want: &Want,
) -> Result<(Choice, bool)> {
    let store = StoreSource::new(engine.clone());
    let root = store.document(target).await?;
    let first = match below(&root, &store, want).await {
        Ok(choice) => return Ok((choice, false)),
        Err(error) => error,
    };
    if !matches!(first.kind(), Kind::NotFound | Kind::PlatformMissing) {
        return Err(first);
    }
    for platform in all_platforms(&root, &store).await.unwrap_or_default() {
        let other = Want {
            wanted: Wanted::exact(platform.clone()),
            host: None,
            engine: None,
            asked: platform.to_string(),
            variant_best: false,
            probation: false,
        };
        if let Ok(choice) = below(&root, &store, &other).await {
            return Ok((choice, true));
        }
    }
    Err(first)
}

/// The config of the image below `target` that is here; `None` where the store does not have it whole.
pub async fn config_of(
    engine: &Engine,
    target: &Descriptor,
    want: &Want,
) -> Result<Option<Digest>> {
    match choose(engine, target, want).await {
        Ok((choice, _)) => Ok(Some(choice.config.digest().clone())),
        Err(error) if is_damage(&error) || error.kind() == Kind::PlatformMissing => Ok(None),
        Err(error) => Err(error),
    }
}

/// The image that `want` picks below `root`, with every document and the config.
pub(super) async fn below(root: &Document, source: &dyn Source, want: &Want) -> Result<Choice> {
    let picked = resolve(root.clone(), source, want).await?.outcome?;
    picked.complete(source).await
}

/// Whether a document or blob is missing or damaged, and the failure is not another one.
pub(super) fn is_damage(error: &Error) -> bool {
    matches!(
        error.kind(),
        Kind::NotFound | Kind::StoreDamaged | Kind::InvalidContent
    )
}
