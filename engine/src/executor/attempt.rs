//! A running attempt, as its executor hands it out: it can be awaited, and it can be told to stop.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::{oneshot, watch};

use crate::job::{Outcome, Usage};

/// What a running attempt is told, each stronger than the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Go on.
    Run,
    /// Finish the record at hand, keep what is good, and end.
    Drain,
    /// Die now.
    Kill,
}

/// A running attempt. Awaiting it gives its outcome and usage; dropping it kills it.
pub struct Attempt {
    control: Control,
    ended: oneshot::Receiver<(Outcome, Usage)>,
}

/// Stops an attempt from elsewhere. Orders to an attempt that is over are ignored.
#[derive(Clone, Debug)]
pub struct Control(watch::Sender<Order>);

/// The executor's side of an attempt.
pub struct Handle {
    /// The strongest order so far. Closed when the attempt and every control were dropped.
    pub orders: watch::Receiver<Order>,
    /// Where the end is reported.
    pub end: oneshot::Sender<(Outcome, Usage)>,
}

impl Attempt {
    /// An attempt and the executor's side of it.
    pub fn new() -> (Self, Handle) {
        let (control, orders) = watch::channel(Order::Run);
        let (end, ended) = oneshot::channel();
        (Self { control: Control(control), ended }, Handle { orders, end })
    }

    /// A control that may outlive this value's move into a task.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// See [`Control::drain`].
    pub fn drain(&self) {
        self.control.drain();
    }

    /// See [`Control::kill`].
    pub fn kill(&self) {
        self.control.kill();
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.control.kill();
    }
}

impl Future for Attempt {
    type Output = (Outcome, Usage);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.ended).poll(cx).map(|ended| {
            ended.unwrap_or_else(|_| (Outcome::machine("its executor stopped before it ended"), Usage::default()))
        })
    }
}

impl Control {
    fn raise(&self, order: Order) {
        self.0.send_if_modified(|current| {
            let raised = order > *current;
            *current = order.max(*current);
            raised
        });
    }

    /// Asks the attempt to end in good order; after a grace period it is killed.
    pub fn drain(&self) {
        self.raise(Order::Drain);
    }

    /// Kills the attempt and everything it started.
    pub fn kill(&self) {
        self.raise(Order::Kill);
    }
}
