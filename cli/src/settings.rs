//! Options with several settings: `size=8G,requested=1G`.

/// The settings of an option, each a key and a value.
pub fn parse(text: &str) -> impl Iterator<Item = Result<(&str, &str), String>> {
    text.split(',').map(|setting| {
        setting.split_once('=').ok_or_else(|| format!("{setting:?} is no setting; write key=value"))
    })
}

/// `on` or `off`.
pub fn parse_switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{key}={value}: write on or off")),
    }
}
