//! Any labels: a JSON array, one label or null for each entry.
#![no_main]

use edgepull_platform::{
    Facts, Label, Offer, OfferKind, Platform, Wanted, detect, explain_missing, select,
};
use libfuzzer_sys::fuzz_target;

const KINDS: [OfferKind; 5] = [
    OfferKind::Image,
    OfferKind::Index,
    OfferKind::Artifact,
    OfferKind::Attestation,
    OfferKind::Other,
];

fuzz_target!(|input: &[u8]| {
    let Ok(labels) = serde_json::from_slice::<Vec<Option<Label>>>(input) else {
        return;
    };
    let kinds = KINDS.iter().cycle().skip(input.len() % KINDS.len());
    let offers: Vec<Offer> = labels
        .into_iter()
        .zip(kinds)
        .map(|(label, kind)| Offer {
            label,
            kind: *kind,
            digest: String::new(),
        })
        .collect();
    let host = detect(&Facts::from_texts("uname_machine=aarch64", [])).expect("an arm64 host");
    for of in [
        "arm64",
        "amd64/v3",
        "windows(10.0.26100)/amd64",
        "zephyr/armv7",
    ] {
        let platform = Platform::parse(of).expect("a platform");
        let wanted = Wanted::fallback(&platform);
        let selection = select(&offers, &wanted, Some(&host), Some(&platform));
        assert_eq!(selection.entries.len(), offers.len());
        assert!(selection.candidates.iter().all(|at| *at < offers.len()));
        assert!(
            !explain_missing(&offers, &wanted, Some(&host))
                .hint
                .is_empty()
        );
    }
});
