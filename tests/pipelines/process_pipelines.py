"""What worker processes run in the tests here; settings import this, so it imports nothing."""

from typing import Any

HERE = "tests.pipelines.process_jobs."
HOOKS = {"failure_hook": HERE + "fail", "completion_hook": HERE + "complete"}
JOBS: dict[str, Any] = {
    "dying group": {
        "tasks": [HERE + "arm", [HERE + "tell_of_itself"] * 3, HERE + "nothing"],
        **HOOKS,
    },
    "dying map": {
        "tasks": [
            HERE + "arm",
            {"map": HERE + "tell_of_itself", "over": "items", "into": "out"},
        ],
        **HOOKS,
    },
    "dying wait": {
        "tasks": [HERE + "arm", {"wait_for": "approval"}, HERE + "nothing"],
        **HOOKS,
    },
    "dying sleep": {"tasks": [HERE + "arm", {"sleep": 0.2}, HERE + "nothing"], **HOOKS},
    "map": {
        "tasks": [{"map": HERE + "tell_of_itself", "over": "items", "into": "out"}],
        **HOOKS,
    },
    "atomic map": {
        "tasks": [{"map": HERE + "effect", "over": "items", "atomic": True}],
        **HOOKS,
    },
    "large map": {
        "tasks": [
            HERE + "make_items",
            {"map": HERE + "nothing", "over": "items", "into": "out"},
        ],
        **HOOKS,
    },
    "standing group": {
        "tasks": [[HERE + "stand", HERE + "stand_deaf_to_checkpoints"]],
        **HOOKS,
    },
    "nested": {
        "tasks": [
            [
                [{"map": HERE + "tell_of_itself", "over": "items", "into": "out"}],
                [[HERE + "nothing", [HERE + "nothing", HERE + "nothing"]]],
            ]
        ],
        **HOOKS,
    },
    "waiting": {"tasks": [{"wait_for": "approval"}], **HOOKS},
}
