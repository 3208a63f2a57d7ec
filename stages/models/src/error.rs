//! What can go wrong between a model directory and an answer.

use std::path::PathBuf;

/// An error of this crate outside the tensor operations themselves.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file or folder could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file or folder could not be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file of the model directory is there but does not say what it must.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        message: String,
    },
    /// A weight is missing, has the wrong shape or is of no use.
    #[error("weight `{name}`: {message}")]
    Weight {
        /// The name of the tensor in the checkpoint.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// A picture that the model cannot take.
    #[error("image of {width} x {height} pixels: {message}")]
    Image {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Why.
        message: String,
    },
    /// A file that holds no picture.
    #[error("not a picture that can be read: {0}")]
    Picture(String),
    /// The tokenizer refused its own file or a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template does not compile or raised an error.
    #[error("chat template: {0}")]
    Template(String),
    /// A prompt or a request that makes no sense to the model.
    #[error("prompt: {0}")]
    Prompt(String),
    /// A setting that cannot be used.
    #[error("{0}")]
    Setting(String),
    /// The device asked for is not there.
    #[error("{0}")]
    Device(String),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// `Result` with [`ModelError`].
pub type Result<T> = std::result::Result<T, ModelError>;
