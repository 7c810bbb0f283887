//! Sections that stand in no file: what was read as it stands, or elsewhere.

use nerve::document::{Document, Errors, Problem, Reported, Section};
use nerve::smartstack::Wrong;

/// Reads it as a section of a file would be, with the keys that mean nothing. `before` is where in `place` it stands.
pub(super) fn read_again<T>(
    place: &str,
    before: &str,
    section: &serde_json::Value,
    read: impl FnOnce(&mut Section<'_>) -> Result<T, Reported>,
) -> Result<(T, Vec<Problem>), Vec<Wrong>> {
    let text = if section.is_null() { "{}".to_owned() } else { section.to_string() };
    let wrong = |errors: Errors| {
        let wrong = errors.iter().map(|error| {
            let expected = if error.expected.is_empty() {
                String::new()
            } else {
                format!(" (expected {})", error.expected)
            };
            let message = format!("{before}{}: {}{expected}", error.key, error.message);
            Wrong { place: place.to_owned(), message }
        });
        wrong.collect::<Vec<_>>()
    };
    let document = Document::parse_json(place, &text).map_err(wrong)?;
    document.decode_tolerantly(read).map_err(wrong)
}
