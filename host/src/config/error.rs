//! What can be wrong with a configuration.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::FILE_MAX;

/// Why a configuration cannot be used.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read.
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file is not a configuration by size or encoding.
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// The text is not TOML, or a field is unknown, of the wrong type or out of range.
    Parse {
        /// The file, if the text came from one.
        path: Option<PathBuf>,
        /// Line, column and reason.
        error: Box<toml::de::Error>,
    },
    /// Fields that are right by themselves do not fit together.
    Conflict {
        /// The file, if the text came from one.
        path: Option<PathBuf>,
        /// The field to change.
        field: &'static str,
        /// What is wrong and what to do.
        advice: String,
    },
}

impl ConfigError {
    pub(super) fn conflict(field: &'static str, advice: impl Into<String>) -> Self {
        Self::Conflict { path: None, field, advice: advice.into() }
    }

    pub(super) fn within(mut self, file: &Path) -> Self {
        if let Self::Parse { path, .. } | Self::Conflict { path, .. } = &mut self {
            *path = Some(file.to_owned());
        }
        self
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = "`bulbil node --print-config` writes every field with its meaning";
        let place = |path: &Option<PathBuf>| path.as_ref().map(|path| format!("{}: ", path.display()));
        match self {
            Self::Read { path, error } => write!(f, "cannot read the configuration {}: {error}", path.display()),
            Self::NotText { path } => write!(
                f,
                "{} is not a configuration: it must be UTF-8 text of at most {FILE_MAX} bytes; {hint}",
                path.display()
            ),
            Self::Parse { path, error } => {
                write!(f, "{}{}\n{hint}", place(path).unwrap_or_default(), error.to_string().trim_end())
            }
            Self::Conflict { path, field, advice } => {
                write!(f, "{}`{field}`: {advice}", place(path).unwrap_or_default())
            }
        }
    }
}

impl std::error::Error for ConfigError {}
