//! Which image records an image has, by who reads the namespace.
//!
//! In `k8s.io` CRI finds an image by its config digest, by tag and by repository digest;
//! it makes the first of these itself only for records that it sees without its label.
//! All of them are written here, labelled as its own. Everywhere else (`default`, docker's
//! `moby`) one record under the canonical name is all that readers know.
//!
//! A pin in `k8s.io` is CRI's label on all three: the tag's record loses it whenever
//! somebody pulls the tag again, the other two are only ever updated in part. Elsewhere
//! there is no kubelet, so our own label says it; only edgepull's prune reads it.

use super::{
    K8S_NAMESPACE,
    image::ImageRecord,
    labels::{CRI_MANAGED, CRI_PINNED, Labels, PINNED},
};
use crate::oci::{Descriptor, Digest, Reference};

/// A record to write: its name and the labels that it must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub name: String,
    pub labels: Labels,
    /// The name is the config's digest. Two references with one config and two indexes
    /// share the record, and it serves both, whichever index it points at.
    pub shared: bool,
}

impl Record {
    /// Whether `there`, which has its name, says what it has to say about `target`.
    pub fn is(&self, there: &ImageRecord, target: &Descriptor) -> bool {
        let target = if self.shared { &there.target } else { target };
        there.is(target, &self.labels)
    }
}

/// What the records of one image depend on.
#[derive(Debug, Clone, Copy)]
pub struct RecordsFor<'a> {
    pub namespace: &'a str,
    pub reference: &'a Reference,
    /// What the records point at.
    pub target: &'a Digest,
    /// The image config; `None` for an artifact, which CRI could not read.
    pub config: Option<&'a Digest>,
    pub pin: bool,
}

/// The records in the order of writing: the reference's own name comes last, because
/// it is what others wait for.
pub fn records(image: RecordsFor<'_>) -> Vec<Record> {
    let own = image.reference.record_name();
    let (Some(config), K8S_NAMESPACE) = (image.config, image.namespace) else {
        let labels = if image.pin {
            labels([PINNED])
        } else {
            Labels::new()
        };
        return vec![Record {
            name: own,
            labels,
            shared: false,
        }];
    };
    let by_digest = format!("{}@{}", image.reference.repository(), image.target);
    let mut names = vec![config.to_string(), by_digest, own];
    // A reference by digest is its own repository digest; by an index's digest and with
    // the record on the manifest it is not.
    names.dedup();
    names
        .into_iter()
        .map(|name| Record {
            shared: name == config.as_str(),
            name,
            labels: if image.pin {
                labels([CRI_MANAGED, CRI_PINNED])
            } else {
                labels([CRI_MANAGED])
            },
        })
        .collect()
}

fn labels<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::MediaType;

    #[test]
    fn kubernetes_has_three_names_and_everybody_else_one() {
        let target = Digest::of(b"target");
        let config = Digest::of(b"config");
        let tagged = Reference::parse("r.example/app:1").expect("valid");
        let names = |namespace, reference: &Reference, config, pin| {
            let image = RecordsFor {
                namespace,
                reference,
                target: &target,
                config,
                pin,
            };
            records(image)
        };
        let kube = names("k8s.io", &tagged, Some(&config), true);
        assert_eq!(
            kube.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(),
            [
                config.as_str(),
                &format!("r.example/app@{target}"),
                "r.example/app:1"
            ]
        );
        assert!(kube.iter().all(|r| r.labels.len() == 2));

        let pinned = Reference::parse(&format!("r.example/app@{target}")).expect("valid");
        assert_eq!(names("k8s.io", &pinned, Some(&config), false).len(), 2);

        let plain = names("moby", &tagged, Some(&config), false);
        assert_eq!(plain.len(), 1);
        assert!(plain[0].labels.is_empty());
        assert_eq!(
            names("k8s.io", &tagged, None, false).len(),
            1,
            "an artifact"
        );
    }

    #[test]
    fn two_indexes_with_one_config_share_its_record() {
        let reference = Reference::parse("r.example/app:1").expect("valid");
        let config = Digest::of(b"config");
        let target = |name: &[u8]| Descriptor::new(MediaType::OciIndex, Digest::of(name), 1);
        let (ours, other) = (target(b"ours"), target(b"other"));
        let all = records(RecordsFor {
            namespace: "k8s.io",
            reference: &reference,
            target: &ours.digest,
            config: Some(&config),
            pin: false,
        });
        let there = |record: &Record, target: &Descriptor, labels: &Labels| ImageRecord {
            name: record.name.clone(),
            target: target.clone(),
            labels: labels.clone(),
        };
        for record in &all {
            assert!(record.is(&there(record, &ours, &record.labels), &ours));
            assert!(!record.is(&there(record, &ours, &Labels::new()), &ours));
            assert_eq!(
                record.is(&there(record, &other, &record.labels), &ours),
                record.name == config.as_str(),
                "{}",
                record.name
            );
        }
    }
}
