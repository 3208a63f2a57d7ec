//! Files that grow elsewhere, read on from where they were last time. Blocking.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// How much of a file was read.
#[derive(Debug, Default)]
pub(super) struct Tail {
    read: u64,
    /// The beginning of a line whose end is not there yet.
    open: Vec<u8>,
}

impl Tail {
    /// The file at what was not read yet; nothing while there is no more.
    fn rest(&self, path: &Path) -> io::Result<Option<File>> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        file.seek(SeekFrom::Start(self.read))?;
        Ok((file.metadata()?.len() > self.read).then_some(file))
    }

    /// The whole lines that came since the last call.
    pub(super) fn lines(&mut self, path: &Path) -> io::Result<Vec<String>> {
        let Some(mut file) = self.rest(path)? else { return Ok(Vec::new()) };
        self.read += file.read_to_end(&mut self.open)? as u64;
        let Some(last) = self.open.iter().rposition(|byte| *byte == b'\n') else { return Ok(Vec::new()) };
        let rest = self.open.split_off(last + 1);
        let whole = std::mem::replace(&mut self.open, rest);
        Ok(String::from_utf8_lossy(&whole).lines().map(str::to_owned).collect())
    }

    /// Appends what came since the last call to `copy`.
    pub(super) fn copy(&mut self, path: &Path, copy: &Path) -> io::Result<()> {
        if let Some(mut file) = self.rest(path)? {
            self.read += io::copy(&mut file, &mut OpenOptions::new().create(true).append(true).open(copy)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn lines_arrive_once_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (path, copy) = (folder.path().join("log"), folder.path().join("copy"));
        let (mut tail, mut copied) = (Tail::default(), Tail::default());
        assert!(tail.lines(&path).unwrap().is_empty());
        let mut file = File::create(&path).unwrap();
        for (text, lines) in
            [("one\ntw", vec!["one"]), ("o", vec![]), ("\nthree\n", vec!["two", "three"]), ("", vec![])]
        {
            file.write_all(text.as_bytes()).unwrap();
            assert_eq!(tail.lines(&path).unwrap(), lines);
            copied.copy(&path, &copy).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&copy).unwrap(), "one\ntwo\nthree\n");
    }
}
