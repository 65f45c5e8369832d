"""The episodes a report shows: one per arm, from one initial state."""

from __future__ import annotations

from qsteer_ros.evaluation import film, page
from qsteer_ros.evaluation.collected import Collected, Track
from qsteer_ros.types import Image


def shown(collected: Collected) -> list[Track]:
    """One episode per arm, from one initial state: where the arms differ most, if they do."""
    pairs = collected.session.matched()
    complete = {
        key: arms for key, arms in pairs.items() if len(arms) == len(collected.session.arms)
    }

    def contrast(key: tuple[int, int]) -> tuple[int, int]:
        outcomes = {arm: result.outcome == "success" for arm, result in complete[key].items()}
        steered = sum(won for arm, won in outcomes.items() if arm != "off")
        return (0 if outcomes.get("off") else 1, steered)

    if not complete:
        return [tracks[0] for arm in collected.session.arms if (tracks := collected.of(arm))]
    chosen = complete[max(complete, key=contrast)]
    wanted = {result.trial.index for result in chosen.values()}
    tracks = [t for t in collected.tracks if t.result.trial.index in wanted]
    return sorted(tracks, key=lambda t: collected.session.arms.index(t.result.trial.arm))


def _views(collected: Collected, track: Track) -> list[Image]:
    """Every frame of an episode, all cameras side by side."""
    cameras = track.episode.cameras
    frames = collected.frames(track, cameras[0])
    for camera in cameras[1:]:
        others = collected.frames(track, camera)
        frames = [film.side_by_side(a, b) for a, b in zip(frames, others, strict=False)]
    return frames


def pictures(collected: Collected) -> str:
    """The shown episodes as one animation, or nothing when no camera was recorded."""
    tracks = [t for t in shown(collected) if t.episode.cameras]
    panels = [
        (t.result.trial.arm, _views(collected, t), t.result.outcome == "success") for t in tracks
    ]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return ""
    trial = tracks[0].result.trial
    caption = f"Goal {trial.goal}, initial state {trial.seed}, as the policy saw it, in real time."
    return page.section(
        "The same start, each arm", page.picture(film.animation(panels), "webp", caption)
    )


def strips(collected: Collected) -> str:
    """A row of moments of the first camera for each shown episode."""
    rows = []
    for track in shown(collected):
        if not track.episode.cameras:
            continue
        frames = collected.frames(track, track.episode.cameras[0])
        if frames:
            seconds = f"{track.result.steps * 0.05:.1f} s"
            caption = f"{track.result.trial.arm}: {track.result.outcome} after {seconds}"
            rows.append(page.picture(film.film_strip(frames), "jpeg", caption))
    return page.section("Film strips", *rows) if rows else ""
