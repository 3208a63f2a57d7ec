//! Who answers: the ways a request gets its reply when the memo has none.
//!
//! | provider | file | answers by |
//! |---|---|---|
//! | `local` | [`local`] | weights in this process |
//! | `openai` | [`openai`] one request, [`served`] many | any server that speaks OpenAI's chat completions |
//! | `replay` | [`replay`] | recorded answers |
//!
//! [`crate::responder`] decides what is asked, and is the only one who asks.

pub mod local;
pub mod openai;
pub mod replay;
pub mod served;
