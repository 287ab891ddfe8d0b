//! What people write: URIs, names, sizes and configuration files ([`uri_and_config`](super::uri_and_config)).

use homi_initiator::Uri;
use homi_spec::Nqn;
use homi_target::Config;
use homi_target::config::{Events, Name, Size};

use super::Reached;

/// See [`uri_and_config`](super::uri_and_config).
pub(super) fn run(data: &[u8]) -> Reached {
    let mut reached = Reached::default();
    let Ok(text) = std::str::from_utf8(data) else {
        return reached;
    };
    // An error repeats what was written; it adds no lines of its own.
    let lines = text.matches('\n').count();
    let one_sentence = |error: &str| {
        assert!(
            !error.is_empty() && error.matches('\n').count() <= lines,
            "{error:?}"
        )
    };
    match text.parse::<Uri>() {
        Ok(uri) => {
            reached.transfers += 1;
            let written = uri.to_string();
            assert_eq!(written.parse::<Uri>().as_ref(), Ok(&uri), "{written:?}");
        }
        Err(error) => one_sentence(&error.to_string()),
    }
    for name in [Nqn::new(text), Nqn::lenient(text)].into_iter().flatten() {
        assert_eq!(name.as_str(), text);
        assert_eq!(Nqn::from_field_lenient(&name.to_field()), Ok(name));
        assert_eq!(text.parse::<Name>().is_ok(), text.parse::<Nqn>().is_ok());
    }
    match text.parse::<Size>() {
        Ok(size) => {
            let written = size.to_string().replace(' ', "");
            assert_eq!(written.parse::<Size>(), Ok(size), "{written:?}");
        }
        Err(error) => one_sentence(&error),
    }
    if let Err(error) = text.parse::<Events>() {
        one_sentence(&error);
    }
    match toml::from_str::<Config>(text) {
        Ok(config) => match config.check() {
            Ok(()) => reached.completions += 1,
            Err(error) => one_sentence(&error.to_string()),
        },
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    reached.failures += usize::from(reached.transfers + reached.completions == 0);
    reached
}
