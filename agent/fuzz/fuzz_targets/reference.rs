//! References from users and files: parsed or refused, and stable when printed.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(reference) = edgepull::oci::Reference::parse(text) {
        let printed = reference.record_name();
        let again = edgepull::oci::Reference::parse(&printed).expect("a record name parses");
        assert_eq!(again.record_name(), printed);
    }
});
