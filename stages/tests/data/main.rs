//! The data stages on whole files: fixtures of the repository, and genuine third-party files where they are there.

mod mask;
mod support;
