"""A textured room with textured objects in it, seen by a moving camera.

**Camera.** Its place and its view run on three circles, each with a phase, and drift a little
beside them. In a clip one phase turns at a constant rate, forwards or backwards, and the other two
rest; which one and which way is the label:

    floor     the camera circles parallel to the floor; clockwise as seen from above
    gaze      the camera stays and its view circles; clockwise as the camera sees it
    upright   the camera circles parallel to the back wall; clockwise as the camera sees it

Why a single frame says nothing: as in the plane, a phase u + v t with u uniform on the circle is
uniform at every t, whatever v is. All else that is seen (drift, room, objects, boards) is drawn
independently of the class; at time 0 a clip would show the very same picture in every class. Two
classes of a pair are one process read in the two directions of time: a drift is a sum of sines of
uniform phase.

**Bodies.** The room is a box seen from inside, objects are balls and boxes that drift and spin. A
board (dial `occlusion`) stays half way between the camera and its object and slides aside and back.
All are affine images of a ball or a cube in every frame, so that pixels and truth come from the
same exact cuts of rays; see `_world_rays`.

World: x right, y down, z into the room, in metres; the camera stays within 1.7 m of the origin.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from pipeline.datasets.synthetic.rays import ROOM, Body, extent, first_hit, project, rays
from pipeline.datasets.synthetic.textures import Skin, bank, draw_skin, shade

CIRCLES = ("floor", "gaze", "upright")
MOTIONS = {
    "floor_clockwise": ("floor", -1),
    "floor_counter_clockwise": ("floor", 1),
    "gaze_clockwise": ("gaze", 1),
    "gaze_counter_clockwise": ("gaze", -1),
    "upright_clockwise": ("upright", 1),
    "upright_counter_clockwise": ("upright", -1),
}
"""label -> the circle on which the camera moves, and the sign of its phase's rate. Sorted."""
LABELS = tuple(MOTIONS)
RATE_RANGE = (0.3, 0.6)
"""Circles per second."""
CIRCLE_M, GAZE_RAD = 0.3, np.radians(7.0)
"""Radii of the circles: 5 to 9 cm, or 1.1 to 2.2 degrees, a frame at 12 frames per second."""
DRIFT_M, DRIFT_RAD = (0.03, 0.4), (np.radians(1.5), np.radians(15.0))
"""Greatest drift of the camera along and around each axis, at viewpoint 0 and 1."""
DRIFT_HZ = (0.08, 0.3)
SPEED_UP, STRETCH, HIDDEN, LOOK_ALIKES = 3.0, 1.5, 0.75, 4
"""These are the values that 1.0 stands for on the dials speed, deformation, occlusion and
distractors, as the settings of the data set say."""
BEHIND_M = 1.5
"""From the origin back to the wall behind the camera."""
SLACK = 0.095
"""A board that is away by this share still covers a ball: it is then aside by 0.23 of its half
side, see `Board.body`."""
OBJECT_DRIFT_M = np.array([0.55, 0.3, 0.3])
OBJECT_POINTS, ROOM_POINTS = 6, 16
"""Tracks on each object, and on the room."""
DEPTH_PX = 56
"""Side of the depth maps."""
PEEP = 24
"""An object is hidden where none of PEEP x PEEP places of its box shows it."""
BLOCK = 8
"""Frames that are looked at together, so that memory does not grow with the clip's length."""
RENDERING = 1
"""Raised when the same settings would give other pixels."""
OBJECT_TINT, ROOM_TINT = 0.35, 0.08
"""Mean colours may lie this far from grey. Walls are near it, so that their brightness tells of the
lamp's distance."""
LIGHT = np.array([-0.5, -0.75, -0.45]) / np.linalg.norm([-0.5, -0.75, -0.45])
"""Towards the light: from the upper left, behind the camera."""


@dataclass(frozen=True)
class Dials:
    """The dials set how many objects there are and how hard they are to follow; see the settings of
    the data set."""

    objects: int = 2
    rooms: int = 0
    occlusion: float = 0.0
    deformation: float = 0.0
    viewpoint: float = 0.0
    speed: float = 0.0
    distractors: float = 0.0


@dataclass(frozen=True)
class Drift:
    """A smooth path in [-1, 1]^D: two sines along each dimension."""

    rate_hz_2D: np.ndarray
    phase_2D: np.ndarray

    def __call__(self, pace_T: np.ndarray) -> np.ndarray:
        """(T, D)."""
        sines_T2D = np.sin(2 * np.pi * (self.rate_hz_2D * pace_T[:, None, None] + self.phase_2D))
        return 0.65 * sines_T2D[:, 0] + 0.35 * sines_T2D[:, 1]


def draw_drift(rng: np.random.Generator, dimensions: int) -> Drift:
    return Drift(rng.uniform(*DRIFT_HZ, (2, dimensions)), rng.random((2, dimensions)))


@dataclass(frozen=True)
class Look:
    """The looks that an object and its look-alikes share."""

    round: bool
    skin: Skin


def draw_look(rng: np.random.Generator) -> Look:
    half_3 = rng.uniform(0.24, 0.38) * rng.uniform(0.8, 1.2, 3)
    is_round = bool(rng.integers(2))
    return Look(
        is_round,
        draw_skin(rng, half_3 if is_round else 0.8 * half_3, 0.005, OBJECT_TINT, one_pattern=True),
    )


@dataclass(frozen=True)
class Motion:
    """The motion of an object: it drifts around `middle_3`, spins about `axis_3` and, if asked to,
    breathes."""

    middle_3: np.ndarray
    drift: Drift
    axis_3: np.ndarray
    spin_hz: float
    stretch_hz: float
    phase_2: np.ndarray
    """Phases of spin and stretch, in turns."""

    def body(self, look: Look, pace_T: np.ndarray, deformation: float) -> Body:
        third = np.arange(3) / 3
        breath_T3 = np.sin(
            2 * np.pi * (self.stretch_hz * pace_T[:, None] + self.phase_2[1] + third)
        )
        half_T3 = look.skin.half_3 * STRETCH ** (deformation * breath_T3)
        turned_T33 = rotation(self.axis_3, 2 * np.pi * (self.spin_hz * pace_T + self.phase_2[0]))
        return Body(
            look.round,
            turned_T33 * half_T3[:, None],
            self.middle_3 + OBJECT_DRIFT_M * self.drift(pace_T),
        )


def draw_motion(rng: np.random.Generator, left: float, width: float) -> Motion:
    """Its middle lies in the slice [left, left + width] of the frame as seen from the origin, 1
    being most of the frame."""
    slot, depth_m = left + width * rng.random(), rng.uniform(2.0, 3.6)
    middle_3 = depth_m * np.array([0.7 * slot - 0.35, rng.uniform(-0.2, 0.2), 1.0])
    axis_3 = rng.standard_normal(3)
    return Motion(
        middle_3,
        draw_drift(rng, 3),
        axis_3 / np.linalg.norm(axis_3),
        spin_hz=rng.choice([-1, 1]) * rng.uniform(0.05, 0.15),
        stretch_hz=rng.uniform(0.2, 0.4),
        phase_2=rng.random(2),
    )


@dataclass(frozen=True)
class Board:
    """Hides one object for a share of the time: it covers the line of sight, then slides aside
    along `way_3` and back."""

    skin: Skin
    way_3: np.ndarray
    rate_hz: float
    phase: float

    def body(
        self, target: Body, camera_T3: np.ndarray, pace_T: np.ndarray, occlusion: float
    ) -> Body:
        """Half way between the camera and `target`; all in world coordinates."""
        # A cosine is above cos(pi s) for a share s of its period. The board still covers all when
        # it is a share SLACK away.
        rest = (np.cos(np.pi * HIDDEN * occlusion) + SLACK) / (1 - SLACK)
        cosine_T = np.cos(2 * np.pi * (self.rate_hz * pace_T + self.phase))
        away_T1 = np.maximum((rest - cosine_T) / (1 + rest), 0)[:, None]
        aside_T3 = 4 * self.skin.half_3[0] * away_T1**2 / (0.25 + away_T1) * self.way_3
        axes_T33 = np.tile(np.diag(self.skin.half_3), (len(pace_T), 1, 1))
        return Body(False, axes_T33, (camera_T3 + target.centre_T3) / 2 + aside_T3)


def draw_board(rng: np.random.Generator, look: Look, deformation: float) -> Board:
    """A board for one object: half its size would just cover it from half way in the middle of the
    frame, 0.65 anywhere."""
    half_3 = look.skin.half_3
    half_m = (
        0.65 * STRETCH**deformation * float(half_3.max() if look.round else np.linalg.norm(half_3))
    )
    way_3 = np.array([[-1.0, 0, 0], [1.0, 0, 0], [0, -1.0, 0]])[rng.integers(3)]
    skin = draw_skin(rng, np.array([half_m, half_m, 0.02]), 0.005, OBJECT_TINT, one_pattern=True)
    return Board(skin, way_3, rng.uniform(0.25, 0.45), rng.random())


def rotation(axis_3: np.ndarray, angle_T: np.ndarray) -> np.ndarray:
    """(T, 3, 3) turns about a unit axis (Rodrigues)."""
    x, y, z = axis_3
    cross_33 = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    sin_T11, cos_T11 = np.sin(angle_T)[:, None, None], np.cos(angle_T)[:, None, None]
    turned: np.ndarray = np.eye(3) + sin_T11 * cross_33 + (1 - cos_T11) * cross_33 @ cross_33
    return turned


@dataclass(frozen=True)
class CameraView:
    """The room and the bodies in front of the camera at T times, in the camera's coordinates; the
    tracked objects come first."""

    pose_T44: np.ndarray
    room: Body
    bodies: list[Body]


class RoomShot:
    """One clip, ready to be rendered. Every part has its own random numbers, so that a dial changes
    only what it is about."""

    def __init__(self, seed: int, index: int, label: str, dials: Dials, stop_s: float) -> None:
        """`stop_s`: tracked points are chosen among what faces the camera at some time before."""

        def rng(*part: int) -> np.random.Generator:
            return np.random.default_rng((seed, index, *part))

        def scenery(*part: int) -> np.random.Generator:
            # Labels take turns: clips of all labels share a room. The last number keeps these draws
            # apart from those of a clip.
            return (
                np.random.default_rng((seed, index // len(LABELS) % dials.rooms, *part, 1))
                if dials.rooms
                else rng(*part)
            )

        self.seed, self.dials = seed, dials
        self.circle, self.direction = MOTIONS[label]
        camera = rng(0)
        self.phase_C, self.rate_hz = camera.random(len(CIRCLES)), camera.uniform(*RATE_RANGE)
        self.home_3, self.drift = camera.uniform(-0.15, 0.15, 3), draw_drift(camera, 6)
        room = scenery(1)
        right_m, down_m, front_m = (
            room.uniform(2.3, 3.8),
            room.uniform(1.4, 2.1),
            room.uniform(4.6, 7.6),
        )
        self.room_middle_3 = np.array([0, 0, (front_m - BEHIND_M) / 2])
        self.room_skin = draw_skin(
            room,
            np.array([right_m, down_m, (front_m + BEHIND_M) / 2]),
            0.02,
            ROOM_TINT,
            one_pattern=False,
        )
        numbers, distractors = range(dials.objects), round(LOOK_ALIKES * dials.distractors)
        self.looks = [draw_look(scenery(2, number)) for number in numbers]
        self.motions = [
            draw_motion(rng(3, number), number / dials.objects, 1 / dials.objects)
            for number in numbers
        ]
        covered = self.looks if dials.occlusion else []
        self.boards = [
            draw_board(rng(4, number), look, dials.deformation)
            for number, look in enumerate(covered)
        ]
        self.distractor_motions = [
            draw_motion(rng(5, number), 0.0, 1.0) for number in range(distractors)
        ]
        self.distractor_looks = list(islice(cycle(self.looks), distractors))
        self.points_QP3 = self._draw_points(rng(6), stop_s)

    def view(self, time_s: np.ndarray) -> CameraView:
        """Everything at these times."""
        dials = self.dials
        pace_T = time_s * SPEED_UP**dials.speed
        pose_T44 = self._pose(pace_T)
        objects = [
            motion.body(look, pace_T, dials.deformation)
            for look, motion in zip(self.looks, self.motions, strict=True)
        ]
        pairs = zip(self.boards, objects, strict=False)
        boards = [
            board.body(target, pose_T44[:, :3, 3], pace_T, dials.occlusion)
            for board, target in pairs
        ]
        distractors = [
            motion.body(look, pace_T, dials.deformation)
            for look, motion in zip(self.distractor_looks, self.distractor_motions, strict=True)
        ]
        room_T33 = np.tile(np.diag(self.room_skin.half_3), (len(time_s), 1, 1))
        room = Body(False, room_T33, np.tile(self.room_middle_3, (len(time_s), 1)))
        return CameraView(
            pose_T44,
            room.seen_from(pose_T44),
            [body.seen_from(pose_T44) for body in (*objects, *boards, *distractors)],
        )

    def _pose(self, pace_T: np.ndarray) -> np.ndarray:
        """(T, 4, 4) camera to world."""
        turning_C = self.direction * self.rate_hz * (np.array(CIRCLES) == self.circle)
        angle_TC = 2 * np.pi * (self.phase_C + turning_C * pace_T[:, None])
        floor_T2, gaze_T2, upright_T2 = np.stack(
            [np.cos(angle_TC), np.sin(angle_TC)], axis=-1
        ).transpose(1, 0, 2)
        share, drift_T6 = self.dials.viewpoint, self.drift(pace_T)
        drift_m, drift_rad = (low + share * (high - low) for low, high in (DRIFT_M, DRIFT_RAD))
        pose_T44 = np.tile(np.eye(4), (len(pace_T), 1, 1))
        pose_T44[:, :3, 3] = self.home_3 + drift_m * drift_T6[:, :3]
        pose_T44[:, [0, 2], 3] += CIRCLE_M * floor_T2
        pose_T44[:, [0, 1], 3] += CIRCLE_M * upright_T2
        right_T, down_T = (GAZE_RAD * gaze_T2 + drift_rad * drift_T6[:, 3:5]).T
        roll_T33 = rotation(np.array([0, 0, 1]), 0.5 * drift_rad * drift_T6[:, 5])
        pose_T44[:, :3, :3] = (
            rotation(np.array([0, 1, 0]), right_T)
            @ rotation(np.array([-1, 0, 0]), down_T)
            @ roll_T33
        )
        return pose_T44

    def _draw_points(self, rng: np.random.Generator, stop_s: float) -> list[np.ndarray]:
        """Per object, then for the room: (points, 3) in the body's own coordinates, each facing the
        camera at some time."""
        points = []
        for number, look in enumerate(self.looks):
            own_P3 = rng.standard_normal((OBJECT_POINTS, 3))
            own_P3 /= (
                np.linalg.norm(own_P3, axis=1, keepdims=True)
                if look.round
                else np.abs(own_P3).max(1, keepdims=True)
            )
            body = self.view(rng.uniform(0, stop_s, OBJECT_POINTS)).bodies[number]
            camera_P3 = body.own_ray(np.zeros((3, 1)))[0][:, :, 0]
            normal_P3 = own_P3 if look.round else np.where(np.abs(own_P3) == 1, own_P3, 0)
            faces_P1 = ((normal_P3 * camera_P3).sum(1) > 1)[:, None]
            points.append(np.where(faces_P1, own_P3, -own_P3))
        ray_P31 = rays(rng.random((ROOM_POINTS, 1, 2)))
        room = self.view(rng.uniform(0, stop_s, ROOM_POINTS)).room
        start_P31, way_P31 = room.own_ray(ray_P31)
        points.append((start_P31 + room.cut(ray_P31)[1][:, None] * way_P31)[:, :, 0])
        return points

    def render(self, time_s: np.ndarray, size_px: int) -> np.ndarray:
        """uint8 RGB (T, H, W, 3): what the ray through every pixel's centre meets."""
        view, ray_3N = self.view(time_s), rays(centres(size_px)).astype(np.float32)
        depth_TN, which_TN = first_hit(view.room, view.bodies, ray_3N)
        light_T3 = view.pose_T44[:, :3, :3].transpose(0, 2, 1) @ LIGHT
        looks = (
            [look.skin for look in self.looks],
            [board.skin for board in self.boards],
            [look.skin for look in self.distractor_looks],
        )
        skins = [skin for group in looks for skin in group] + [self.room_skin]
        colour_3TN = np.empty((3, *depth_TN.shape), np.float32)
        for number, (skin, body) in enumerate(zip(skins, [*view.bodies, view.room], strict=True)):
            row_M, ray_M = met = np.nonzero(which_TN == (ROOM if body is view.room else number))
            colour_3TN[:, row_M, ray_M] = shade(
                skin, bank(self.seed), body, light_T3, ray_3N, met, depth_TN[met], 1 / size_px
            )
        frames_TN3 = (colour_3TN.clip(0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
        return np.ascontiguousarray(frames_TN3).reshape(len(time_s), size_px, size_px, 3)

    def truth(self, time_s: np.ndarray, depth_px: int = DEPTH_PX) -> dict[str, np.ndarray]:
        """The truth of every frame, exact to rounding.

        `boxes` (O, F, 4): bounds of an object's whole projection, hidden parts included, cut at the
        frame's edges; NaN where all of it is hidden or out of the frame. Neither boards nor
        look-alikes have boxes. `points` (6 O + 16, F, 2): six fixed on the surface of each object,
        object by object, then 16 on the room; outside of [0, 1] where out of the frame, NaN where
        behind the camera or less than 5 cm before it. `visible`: False where a point is out of the
        frame, turned away or covered by anything. `depth_m` (F, 56, 56): depth along the optical
        axis at the centre of each cell. `pose` (F, 4, 4): camera to world.
        """
        blocks = [
            self._truth(time_s[start : start + BLOCK], depth_px)
            for start in range(0, len(time_s), BLOCK)
        ]
        axis = {"boxes": 1, "points": 1, "visible": 1, "depth_m": 0, "pose": 0}
        return {
            name: np.concatenate([block[name] for block in blocks], axis=axis[name])
            for name in axis
        }

    def _truth(self, time_s: np.ndarray, depth_px: int) -> dict[str, np.ndarray]:
        view, frames = self.view(time_s), len(time_s)
        objects = view.bodies[: len(self.looks)]
        box_TO4 = np.stack([extent(body) for body in objects], axis=1)
        places = (np.arange(PEEP) + 0.5) / PEEP
        across, down = (
            box_TO4[..., side, None] * (1 - places) + box_TO4[..., side + 2, None] * places
            for side in (0, 1)
        )
        peep_TOPP2 = np.stack(np.broadcast_arrays(across[..., None, :], down[..., None]), axis=-1)
        _, seen_TN = first_hit(view.room, view.bodies, rays(peep_TOPP2.reshape(frames, -1, 2)))
        shows_TO = (
            seen_TN.reshape(frames, len(objects), -1) == np.arange(len(objects))[:, None]
        ).any(-1)

        owners = [*objects, view.room]
        place_TQ3 = np.concatenate(
            [body.place(own) for body, own in zip(owners, self.points_QP3, strict=True)], axis=1
        )
        xy_TQ2 = project(place_TQ3)
        nearest_TQ, _ = first_hit(view.room, view.bodies, rays(xy_TQ2))
        uncovered_TQ = nearest_TQ > place_TQ3[..., 2] * (1 - 1e-6)
        with np.errstate(invalid="ignore"):
            in_frame_TQ = ((xy_TQ2 >= 0) & (xy_TQ2 <= 1)).all(-1)

        depth_TN, _ = first_hit(view.room, view.bodies, rays(centres(depth_px)))
        return {
            "boxes": np.where(shows_TO[..., None], box_TO4, np.nan)
            .transpose(1, 0, 2)
            .astype(np.float32),
            "points": xy_TQ2.transpose(1, 0, 2).astype(np.float32),
            "visible": (uncovered_TQ & in_frame_TQ).T,
            "depth_m": depth_TN.reshape(frames, depth_px, depth_px).astype(np.float32),
            "pose": view.pose_T44,
        }


def centres(size_px: int) -> np.ndarray:
    """(size_px^2, 2) xy of the pixels' centres, row by row."""
    places = (np.arange(size_px) + 0.5) / size_px
    return np.stack(np.meshgrid(places, places, indexing="xy"), axis=-1).reshape(-1, 2)
