//! Image records.

use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, ListImagesRequest,
    UpdateImageRequest, images_client::ImagesClient,
};
use prost_types::FieldMask;
use tonic::transport::Channel;

use super::{
    client::{Engine, MAX_MESSAGE, METADATA},
    diff::descriptor,
    failure::{Cause, Failure},
    labels::{CRI_PINNED, Labels, MANAGED, PINNED, PINNED_BY, TARGET},
};
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::{Descriptor, Digest, MediaType},
};

/// Rounds of "create, it exists, update, it is gone" before somebody must be blamed.
const PUT_TRIES: usize = 8;

/// An image record as it is in the store.
#[derive(Debug, Clone)]
pub struct ImageRecord {
    pub name: String,
    pub target: Descriptor,
    pub labels: Labels,
}

/// What [`Engine::put_image`] had to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    Created,
    Updated,
    Unchanged,
}

impl ImageRecord {
    /// Whether it points at `target` and carries all of `labels`.
    pub fn is(&self, target: &Descriptor, labels: &Labels) -> bool {
        self.target.digest == target.digest
            && labels
                .iter()
                .all(|(key, value)| self.labels.get(key) == Some(value))
    }

    /// Whether kubelet or edgepull's own pruning are told to leave it alone.
    pub fn is_pinned(&self) -> bool {
        [CRI_PINNED, PINNED]
            .iter()
            .any(|pin| has(Some(&self.labels), *pin))
    }

    fn decode(image: Image) -> Option<Self> {
        let target = image.target?;
        let digest = Digest::parse(&target.digest).ok()?;
        let size = u64::try_from(target.size).unwrap_or_default();
        Some(Self {
            name: image.name,
            target: Descriptor::new(MediaType::parse(&target.media_type), digest, size),
            labels: image.labels,
        })
    }
}

fn has(labels: Option<&Labels>, (key, value): (&str, &str)) -> bool {
    labels
        .and_then(|labels| labels.get(key))
        .map(String::as_str)
        == Some(value)
}

/// What we remember about our own work on the record, beside the labels that others read:
/// that the pin is ours if it was not there, and what a record of ours was made to point at.
/// `by` is who asks; nothing is remembered of somebody without a name.
fn remembered(
    there: Option<&ImageRecord>,
    target: &Descriptor,
    labels: &Labels,
    by: Option<&String>,
) -> Labels {
    let before = there.map(|record| &record.labels);
    let mut all = labels.clone();
    let pins = [CRI_PINNED, PINNED]
        .iter()
        .any(|pin| has(Some(labels), *pin) && !has(before, *pin));
    if let Some(by) = by
        && pins
    {
        all.insert(PINNED_BY.to_owned(), by.clone());
    }
    let owned = before.map_or(by.is_some(), |labels| labels.contains_key(MANAGED));
    if owned {
        all.insert(TARGET.to_owned(), target.digest.to_string());
    }
    all
}

fn client(channel: Channel) -> ImagesClient<Channel> {
    ImagesClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

impl Engine {
    /// The record `name`; `None` if there is none.
    pub async fn image(&self, name: &str) -> Result<Option<ImageRecord>> {
        let message = GetImageRequest {
            name: name.to_owned(),
        };
        let action = format!("look up image `{name}`");
        let answer = self
            .call(&action, METADATA, message, |c, r| async move {
                client(c).get(r).await
            })
            .await;
        match answer {
            Ok(answer) => Ok(answer.image.and_then(ImageRecord::decode)),
            Err(failure) if failure.cause == Cause::Missing => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    /// The records that any of `filters` matches (containerd's filter language); all of
    /// them without a filter.
    pub async fn images(&self, filters: Vec<String>) -> Result<Vec<ImageRecord>> {
        let message = ListImagesRequest { filters };
        let answer = self
            .call("list images", METADATA, message, |c, r| async move {
                client(c).list(r).await
            })
            .await?;
        Ok(answer
            .images
            .into_iter()
            .filter_map(ImageRecord::decode)
            .collect())
    }

    /// Makes the record `name` point at `target` with `labels`, and leaves every label of
    /// others alone. `when_created` is added only to a record that did not exist; its
    /// [`MANAGED`] is the name under which a pin is remembered ([`PINNED_BY`]).
    pub async fn put_image(
        &self,
        name: &str,
        target: &Descriptor,
        labels: &Labels,
        when_created: &Labels,
    ) -> Result<Put> {
        let mut last = None;
        for _ in 0..PUT_TRIES {
            let by = when_created.get(MANAGED);
            let there = self.image(name).await?;
            let all = remembered(there.as_ref(), target, labels, by);
            let done = match there {
                Some(record) if record.is(target, labels) => return Ok(Put::Unchanged),
                Some(_) => self.update_image(name, target, &all).await,
                None => self.create_image(name, target, &all, when_created).await,
            };
            match done {
                Ok(put) => return Ok(put),
                // Somebody else was between our two calls.
                Err(failure) if matches!(failure.cause, Cause::Exists | Cause::Missing) => {
                    last = Some(failure);
                }
                Err(failure) => return Err(failure.into()),
            }
        }
        let error = Error::new(
            Kind::Unavailable,
            format_args!("image record `{name}` changes faster than it can be written"),
        );
        Err(match last {
            Some(failure) => error.because(failure.error),
            None => error,
        })
    }

    async fn create_image(
        &self,
        name: &str,
        target: &Descriptor,
        labels: &Labels,
        when_created: &Labels,
    ) -> Result<Put, Failure> {
        let mut all = when_created.clone();
        all.extend(labels.clone());
        let message = CreateImageRequest {
            image: Some(Image {
                name: name.to_owned(),
                labels: all,
                target: Some(descriptor(target)),
                ..Image::default()
            }),
            ..CreateImageRequest::default()
        };
        let action = format!("create image `{name}`");
        self.call(&action, METADATA, message, |c, r| async move {
            client(c).create(r).await
        })
        .await?;
        Ok(Put::Created)
    }

    async fn update_image(
        &self,
        name: &str,
        target: &Descriptor,
        labels: &Labels,
    ) -> Result<Put, Failure> {
        // Without a mask the update would drop the labels of everybody else.
        let mut paths = vec!["target".to_owned()];
        paths.extend(labels.keys().map(|key| format!("labels.{key}")));
        let message = UpdateImageRequest {
            image: Some(Image {
                name: name.to_owned(),
                labels: labels.clone(),
                target: Some(descriptor(target)),
                ..Image::default()
            }),
            update_mask: Some(FieldMask { paths }),
            ..UpdateImageRequest::default()
        };
        let action = format!("update image `{name}`");
        self.call(&action, METADATA, message, |c, r| async move {
            client(c).update(r).await
        })
        .await?;
        Ok(Put::Updated)
    }

    /// Sets (or, with an empty value, removes) labels of a record; `false` if the record
    /// does not exist.
    pub async fn label_image(&self, record: &ImageRecord, labels: Labels) -> Result<bool> {
        if labels.is_empty() {
            return Ok(true);
        }
        let message = UpdateImageRequest {
            update_mask: Some(FieldMask {
                paths: labels.keys().map(|key| format!("labels.{key}")).collect(),
            }),
            image: Some(Image {
                name: record.name.clone(),
                labels,
                // Not in the mask, so it is not written. But without it containerd, 1.7 and
                // later, dereferences nothing, and the whole daemon is gone.
                target: Some(descriptor(&record.target)),
                ..Image::default()
            }),
            ..UpdateImageRequest::default()
        };
        let action = format!("label image `{}`", record.name);
        let answer = self
            .call(&action, METADATA, message, |c, r| async move {
                client(c).update(r).await
            })
            .await;
        match answer {
            Ok(_) => Ok(true),
            Err(failure) if failure.cause == Cause::Missing => Ok(false),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Deletes the record `name`; `false` if there was none. What only it held is
    /// collected by containerd's next garbage collection; `sync` waits for one, of all
    /// namespaces.
    pub async fn delete_image(&self, name: &str, sync: bool) -> Result<bool> {
        self.delete_image_at(name, None, sync).await
    }

    /// Deletes the record `name` if it points at `target`; `false` if it does not, or is
    /// not there.
    pub async fn delete_image_if(&self, name: &str, target: &Descriptor) -> Result<bool> {
        // Servers before 2.0 do not know the guard: there, what is between these two calls
        // is not seen.
        match self.image(name).await? {
            Some(there) if there.target.digest == target.digest => {
                self.delete_image_at(name, Some(target), false).await
            }
            _ => Ok(false),
        }
    }

    async fn delete_image_at(
        &self,
        name: &str,
        target: Option<&Descriptor>,
        sync: bool,
    ) -> Result<bool> {
        let message = DeleteImageRequest {
            name: name.to_owned(),
            sync,
            target: target.map(descriptor),
        };
        let action = format!("delete image `{name}`");
        let answer = self
            .call(&action, METADATA, message, |c, r| async move {
                client(c).delete(r).await
            })
            .await;
        match answer {
            Ok(()) => Ok(true),
            Err(failure) if failure.cause == Cause::Missing => Ok(false),
            Err(failure) => Err(failure.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_ours_only_if_nobody_else_set_it() {
        let target = Descriptor::new(MediaType::OciIndex, Digest::of(b"t"), 1);
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        let record = |pairs: &[(&str, &str)]| ImageRecord {
            name: "r".to_owned(),
            target: target.clone(),
            labels: labels(pairs),
        };
        let by = "agent".to_owned();
        let pin = labels(&[CRI_PINNED]);
        let mark = |there: Option<&ImageRecord>, by| {
            let all = remembered(there, &target, &pin, by);
            (all.contains_key(PINNED_BY), all.contains_key(TARGET))
        };
        assert_eq!(mark(None, Some(&by)), (true, true));
        assert_eq!(mark(None, None), (false, false));
        assert_eq!(
            mark(Some(&record(&[])), Some(&by)),
            (true, false),
            "adopted"
        );
        assert_eq!(
            mark(Some(&record(&[(MANAGED, "cli")])), Some(&by)),
            (true, true)
        );
        let theirs = record(&[CRI_PINNED]);
        assert_eq!(mark(Some(&theirs), Some(&by)), (false, false));
        assert!(theirs.is_pinned());
        assert!(!record(&[(CRI_PINNED.0, "no")]).is_pinned());
    }
}
