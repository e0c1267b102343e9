"""A jointed walking person made of capsules, with its 133 whole-body keypoints."""

from dataclasses import dataclass

import numpy as np

from worldtune.demo.render import Capsule, Floats, Paint, Solid, Sphere
from worldtune.demo.whole_body import HAND_RADIUS_M, hand_end, whole_body

JOINTS = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)
"""COCO's body points, in COCO's order."""

THIGH_M, SHANK_M, UPPER_ARM_M, FOREARM_M, FOOT_M = 0.43, 0.43, 0.29, 0.26, 0.17
TRUNK_M, NECK_M = 0.50, 0.17
HIP_HALF_M, SHOULDER_HALF_M = 0.10, 0.20
ANKLE_M = 0.09
HEAD_RADIUS_M = 0.13
SKIN = {"light": (0.94, 0.76, 0.62), "brown": (0.65, 0.45, 0.32), "dark": (0.43, 0.29, 0.21)}


@dataclass(frozen=True, kw_only=True)
class Walker:
    """Who walks where."""

    instance: int
    middle: tuple[float, float]
    """Where the person is at `middle_s`, on the ground."""
    middle_s: float
    heading_rad: float
    """Direction of the walk; 0 is along x."""
    speed_m_s: float
    phase: float
    """Place in the walking cycle at time 0, 0 to 1."""
    skin: Floats
    hair: Floats
    shirt: Floats
    trousers: Floats
    shoes: Floats


def walk(walker: Walker, time_s: float) -> tuple[list[Solid], Floats]:
    """Return the person's bodies at a time, and its keypoints (float32 [133, 3], metres), `JOINTS` first."""
    joints = _joints(walker, time_s)
    forward = np.array([np.cos(walker.heading_rad), np.sin(walker.heading_rad), 0], dtype=np.float32)
    head = (joints["left_ear"] + joints["right_ear"]) / 2
    neck = (joints["left_shoulder"] + joints["right_shoulder"]) / 2
    pelvis = (joints["left_hip"] + joints["right_hip"]) / 2

    def limb(start: Floats, end: Floats, radius: float, colour: Floats) -> Capsule:
        paint = Paint(colour=colour, second=colour, shine=0.05)
        return Capsule(instance=walker.instance, paint=paint, start=start, end=end, radius=radius)

    up = np.array([0, 0, 1], dtype=np.float32)
    bodies: list[Solid] = [
        limb(pelvis + 0.06 * up, neck - 0.16 * up, 0.15, walker.shirt),
        limb(joints["left_shoulder"] - 0.05 * up, joints["right_shoulder"] - 0.05 * up, 0.10, walker.shirt),
        limb(joints["left_hip"] + 0.02 * up, joints["right_hip"] + 0.02 * up, 0.11, walker.trousers),
        limb(neck, head, 0.065, walker.skin),
        Sphere(
            instance=walker.instance,
            paint=Paint(colour=walker.skin, second=walker.skin, shine=0.05),
            centre=head,
            radius=HEAD_RADIUS_M,
        ),
        Sphere(
            instance=walker.instance,
            paint=Paint(colour=walker.hair, second=walker.hair, shine=0.05),
            centre=head - 0.035 * forward + 0.03 * up,
            radius=HEAD_RADIUS_M,
        ),
    ]
    for side in ("left", "right"):
        shoulder, elbow, wrist = (joints[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist"))
        hip, knee, ankle = (joints[f"{side}_{name}"] for name in ("hip", "knee", "ankle"))
        bodies += [
            limb(shoulder - 0.03 * up, elbow, 0.062, walker.shirt),
            limb(elbow, wrist, 0.05, walker.skin),
            limb(wrist, hand_end(joints, side), HAND_RADIUS_M, walker.skin),
            limb(hip, knee, 0.092, walker.trousers),
            limb(knee, ankle, 0.072, walker.trousers),
            limb(ankle - 0.02 * up, ankle - 0.02 * up + FOOT_M * forward, 0.06, walker.shoes),
        ]
    return bodies, whole_body(joints, JOINTS, forward)


def _joints(walker: Walker, time_s: float) -> dict[str, Floats]:
    """Return the joints at a time by name."""
    forward = np.array([np.cos(walker.heading_rad), np.sin(walker.heading_rad), 0])
    left = np.array([-forward[1], forward[0], 0])
    up = np.array([0.0, 0.0, 1.0])

    def hang(angle_rad: float) -> np.ndarray:
        return np.sin(angle_rad) * forward - np.cos(angle_rad) * up

    # A cycle of two steps covers about four times the swing of a foot to one side.
    cycles_s = walker.speed_m_s / (4 * (THIGH_M + SHANK_M) * np.sin(0.42))
    joints: dict[str, np.ndarray] = {}
    for side, sign, shift in (("left", 1, 0.0), ("right", -1, 0.5)):
        angle = 2 * np.pi * (cycles_s * time_s + walker.phase + shift)
        thigh = 0.42 * np.sin(angle) + 0.06
        # The knee bends while the leg swings forward.
        shank = thigh - 0.10 - 0.85 * max(0.0, float(np.cos(angle))) ** 2
        hip = HIP_HALF_M * sign * left
        joints[f"{side}_hip"] = hip
        joints[f"{side}_knee"] = hip + THIGH_M * hang(thigh)
        joints[f"{side}_ankle"] = joints[f"{side}_knee"] + SHANK_M * hang(shank)
        shoulder = SHOULDER_HALF_M * sign * left + TRUNK_M * up + 0.03 * forward
        upper_arm = -0.5 * np.sin(angle)
        joints[f"{side}_shoulder"] = shoulder
        joints[f"{side}_elbow"] = shoulder + UPPER_ARM_M * hang(upper_arm) + 0.05 * sign * left
        joints[f"{side}_wrist"] = joints[f"{side}_elbow"] + FOREARM_M * hang(upper_arm + 0.45)
        head = (TRUNK_M + NECK_M) * up + 0.05 * forward
        joints[f"{side}_ear"] = head + 0.115 * sign * left
        joints[f"{side}_eye"] = head + 0.105 * forward + 0.04 * sign * left + 0.03 * up
        joints["nose"] = head + 0.12 * forward - 0.01 * up
    along = walker.speed_m_s * (time_s - walker.middle_s)
    place = np.array([*walker.middle, 0.0]) + along * forward
    # The lower foot stands on the ground, which makes the body rise and sink as it walks.
    lowest = min(joints["left_ankle"][2], joints["right_ankle"][2])
    base = place + (ANKLE_M - lowest) * up
    return {name: (base + value).astype(np.float32) for name, value in joints.items()}
