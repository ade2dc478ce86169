//! What a person types is refused, or printed so that it is read back the same.
#![no_main]

use edgepull_platform::{Platform, vector};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    if let Ok(platform) = Platform::parse(input) {
        assert_eq!(Platform::parse(&platform.to_string()), Ok(platform.clone()));
        let list = vector(&platform);
        assert!(list.is_empty() || list.contains(&platform));
    }
});
