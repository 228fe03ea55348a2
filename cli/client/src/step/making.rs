//! Making a step in a job that has its nodes: at once, or when other steps have left it room. That it waits for them is said where the
//! controller knows it. What the step of an `srun` had that has returned is as good as free: its exit is on its way, and the next step waits
//! for that without a word.

use crate::submit;
use berth_model::request::{RefusalCode, Response};
use berth_model::spec::StepSpec;
use berth_model::time::Span;
use berth_rpc::RpcError;
use std::time::Duration;
use tokio::time::timeout;

/// How long the controller may take to say for what the step waits: longer than it waits for its agents. One of an earlier version does not
/// say it of a step that waits already.
const KNOWN: Duration = Duration::from_secs(30);

/// As what a step is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// As its options say.
    Make,
    /// As one that is refused where it would wait for steps that run ([`impatient`]).
    MakeOrRefuse,
}

/// The same step, for a client that waits for no other one.
pub fn impatient(spec: &StepSpec) -> StepSpec {
    StepSpec { immediate: Some(Span::default()), ..spec.clone() }
}

/// Has a step made by `ask`, which may ask for it several times: it names the same submission each time. `patient`: without `--immediate`.
/// `busy` is called when the step waits for others. Gives the answer, and whether that was.
pub async fn make<Answer>(
    patient: bool,
    busy: impl FnOnce(),
    ask: impl Fn(Ask) -> Answer,
) -> (Result<Response, RpcError>, bool)
where
    Answer: Future<Output = Result<Response, RpcError>>,
{
    if !patient {
        return (ask(Ask::Make).await, false);
    }
    // Most are made at once, and their controller is asked once.
    let mut first = Box::pin(ask(Ask::Make));
    if let Ok(answer) = timeout(submit::SOON, first.as_mut()).await {
        return (answer, false);
    }
    // The first request is let go when the second one is answered: with it the step would lose its place among those that wait.
    let told = timeout(KNOWN, ask(Ask::MakeOrRefuse)).await;
    drop(first);
    match told {
        Ok(Err(RpcError::Refused(refusal))) if refusal.code == RefusalCode::Busy => {}
        Ok(answer) => return (answer, false),
        Err(_) => {}
    }
    busy();
    (ask(Ask::Make).await, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::request::Refusal;
    use std::cell::{Cell, RefCell};

    /// As what a step is asked for of a controller that answers so (`None`: not at all), and whether the user hears that it waits.
    fn asked(patient: bool, answers: Vec<Option<Result<Response, RpcError>>>) -> (Vec<Ask>, bool) {
        let (asks, told) = (RefCell::new(Vec::new()), Cell::new(false));
        let answers = RefCell::new(answers.into_iter());
        let ask = |how: Ask| {
            asks.borrow_mut().push(how);
            let answer = answers.borrow_mut().next().flatten();
            async move {
                match answer {
                    Some(answer) => answer,
                    None => std::future::pending().await,
                }
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (_, waited) = runtime.block_on(make(patient, || told.set(true), ask));
        assert_eq!(waited, told.get());
        assert!(answers.borrow_mut().next().is_none(), "it was not asked as often as expected");
        (asks.into_inner(), waited)
    }

    #[test]
    fn a_step_that_waits_for_an_end_on_its_way_waits_without_a_word() {
        let made = || Some(Ok(Response::Done));
        let busy = Some(Err(RpcError::Refused(Refusal::new(RefusalCode::Busy, "others run"))));
        assert_eq!(asked(true, vec![made()]), (vec![Ask::Make], false));
        assert_eq!(asked(true, vec![None, made()]), (vec![Ask::Make, Ask::MakeOrRefuse], false));
        let all = vec![Ask::Make, Ask::MakeOrRefuse, Ask::Make];
        assert_eq!(asked(true, vec![None, busy, made()]), (all, true));
    }

    #[test]
    fn the_first_request_is_there_until_the_second_one_is_answered() {
        struct Open<'a>(&'a Cell<u32>);
        impl Drop for Open<'_> {
            fn drop(&mut self) {
                self.0.set(self.0.get() - 1);
            }
        }
        let (open, most) = (Cell::new(0), Cell::new(0));
        let ask = |how: Ask| {
            open.set(open.get() + 1);
            let (own, now, most) = (Open(&open), &open, &most);
            async move {
                let _own = own;
                if how == Ask::Make {
                    std::future::pending::<()>().await;
                }
                most.set(now.get());
                Ok(Response::Done)
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (answer, waited) = runtime.block_on(make(true, || panic!("it was made"), ask));
        assert!(answer.is_ok() && !waited);
        assert_eq!((most.get(), open.get()), (2, 0));
    }

    #[test]
    fn refusals_are_not_asked_about_again() {
        let refused = |code| Some(Err(RpcError::Refused(Refusal::new(code, "no"))));
        assert_eq!(asked(true, vec![refused(RefusalCode::Impossible)]), (vec![Ask::Make], false));
        let twice = vec![Ask::Make, Ask::MakeOrRefuse];
        assert_eq!(asked(true, vec![None, refused(RefusalCode::WrongState)]), (twice, false));
        assert_eq!(asked(false, vec![refused(RefusalCode::Busy)]), (vec![Ask::Make], false));
    }
}
