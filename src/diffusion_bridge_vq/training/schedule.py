"""Where a run is in its schedule: phases, warm-up, learning rate and averaging are functions of it."""

from .config import RunConfig


class Schedule:
    """
    The place of a run in its schedule, in steps: 0 at the start, `max_train_steps` at the end.

    Without `max_train_time` it is the number of steps taken. With it the run may end before its last step. Then the
    place follows the limit that will end the run: the larger of the two fractions, of the steps and of the seconds
    that are used, times `max_train_steps`. All processes must be given the same seconds.

    Args:
        config (`RunConfig`): has the limits.
    """

    def __init__(self, config: RunConfig):
        self.config = config
        self.seconds = 0.0  # used, over all starts of the run
        self.reached = 0.0  # fraction of the run at which the last step began
        self._earliest = 0.0

    def place(self, done: int) -> float:
        """After `done` steps; an integer without a time limit."""
        config = self.config
        if config.max_train_time is None:
            return done
        used = min(1.0, self.seconds / config.max_train_time) * config.max_train_steps
        return max(done, used)

    def begin(self, done: int) -> float:
        """
        The place of the step that begins after `done` others, for what joins or is frozen during a run. It never goes
        back: with a higher limit the run is at a smaller fraction than before, but what was frozen stays frozen.
        """
        place = max(self.place(done), self._earliest)
        self.reached = place / self.config.max_train_steps
        return place

    def stay_at(self, reached: float, done: int) -> bool:
        """Let no step begin before the fraction `reached` of the run; returns whether the next one would have."""
        wanted, place = reached * self.config.max_train_steps, self.place(done)
        self.reached = reached
        if before := wanted > place + 1e-6 * self.config.max_train_steps:  # not by rounding
            self._earliest = wanted
        return before

    def ended(self, done: int) -> bool:
        """Whether nothing is left to train after `done` steps."""
        limit = self.config.max_train_time
        return done >= self.config.max_train_steps or (limit is not None and self.seconds >= limit)

    def ema_decay(self, before: float, after: float) -> float:
        """
        The decay of the averaged weights for a step that goes from one place to another.

        `ema_decay` is meant for a step of 1. An average that reaches over more steps than the whole run, 1 / (1 -
        decay), would still hold the initial weights at the end. Its decay is limited to (1 + n) / (10 + n) after n
        steps, as is usual.
        """
        decay = self.config.ema_decay
        if decay > 0 and 1 / (1 - decay) > self.config.max_train_steps:
            decay = min(decay, (1 + after) / (10 + after))
        return decay ** (after - before)
