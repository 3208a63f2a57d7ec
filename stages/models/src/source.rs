//! Where requests come from while others are in work.

use std::collections::BTreeMap;
use std::ops::Index;

use crate::error::Result;
use crate::generate::GenerateRequest;

/// Asked between two steps; `None` when there is nothing now.
pub(crate) type Source<'a> = dyn FnMut() -> Option<GenerateRequest> + 'a;

/// Requests as they come, by their number: the first that the source gives is 0.
pub(crate) struct Requests<'a> {
    source: &'a mut Source<'a>,
    known: BTreeMap<usize, GenerateRequest>,
    drawn: usize,
}

impl<'a> Requests<'a> {
    pub(crate) fn new(source: &'a mut Source<'a>) -> Self {
        Self { source, known: BTreeMap::new(), drawn: 0 }
    }

    /// The request of this number, which the source may be asked for now.
    ///
    /// # Errors
    /// Its sampling makes no sense.
    pub(crate) fn next(&mut self, number: usize) -> Result<Option<&GenerateRequest>> {
        if number == self.drawn {
            let Some(request) = (self.source)() else { return Ok(None) };
            request.sampling.check()?;
            self.known.insert(number, request);
            self.drawn += 1;
        }
        Ok(self.known.get(&number))
    }

    /// Forgets a request that is answered, or that nobody wants answered.
    pub(crate) fn forget(&mut self, number: usize) {
        self.known.remove(&number);
    }
}

impl Index<usize> for Requests<'_> {
    type Output = GenerateRequest;

    fn index(&self, number: usize) -> &GenerateRequest {
        &self.known[&number]
    }
}
