"""Published tracking data sets as settings of `boxes_text`.

Each was written against code that reads it, named at its head. A preset is the archives as they
unpack; every setting of it may be replaced. Where two readers disagree, or none says it, the note
says what was taken.
"""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # cvlab.hanyang.ac.kr/tracker_benchmark; visionml/pytracking otbdataset.py, got-10k/toolkit
    # otb.py. MATLAB counts pixels from 1.
    "otb": {
        "frames": "{sequence}/img",
        "truth": "{sequence}/groundtruth_rect*.txt",
        "first_pixel": 1,
    },
    # amoudgl.github.io/tlp, TLP and TinyTLP: frame,x,y,w,h,lost, where the frame of TinyTLP is
    # counted from 1. Annotated with VATIC, which counts pixels from 0.
    "tlp": {
        "frames": "{sequence}/img",
        "truth": "{sequence}/groundtruth_rect.txt",
        "columns": "frame,x,y,w,h,lost",
        "keep": ("lost=0",),
    },
    # vision.cs.stonybrook.edu/~lasot; pytracking lasotdataset.py, got-10k/toolkit lasot.py. Classes
    # lie in folders (airplane/airplane-1/img) or all in one. 30 frames a second.
    "lasot": {
        "frames": "**/{sequence}/img",
        "truth": "**/{sequence}/groundtruth.txt",
        "absent_files": (
            "**/{sequence}/full_occlusion.txt=1",
            "**/{sequence}/out_of_view.txt=1",
        ),
    },
    # got-10k.aitestunion.com; got-10k/toolkit got10k.py, pytracking ltr/dataset/got10k.py: an
    # object is seen where absence is 0 and cover above 0. meta_info.ini says `anno_fps: 10Hz`; only
    # the first frame of a test sequence has a box.
    "got10k": {
        "frames": "{split}/{sequence}",
        "truth": "{split}/{sequence}/groundtruth.txt",
        "absent_files": (
            "{split}/{sequence}/absence.label=1",
            "{split}/{sequence}/cover.label=0",
        ),
        "image_fps": 10.0,
        "fps_file": "{split}/{sequence}/meta_info.ini:anno_fps",
        "only": "{split}/list.txt",
    },
    # cemse.kaust.edu.sa/ivul/uav123; pytracking uavdataset.py, got-10k/toolkit uav123.py. NaN lines
    # are absence. Its toolkit is that of OTB, whose pixels count from 1. For UAV20L:
    # truth=anno/UAV20L/{sequence}.txt.
    "uav123": {
        "frames": "data_seq/UAV123/{sequence}",
        "truth": "anno/UAV123/{sequence}.txt",
        "first_pixel": 1,
    },
    # ci2cv.net/nfs; got-10k/toolkit nfs.py. Lines of VATIC: id xmin ymin xmax ymax frame lost
    # occluded generated "label". The frame begins at 0 or at 1, so it is not read: line k is frame
    # k.
    "nfs240": {
        "frames": "{sequence}/240/{sequence}",
        "truth": "{sequence}/240/{sequence}.txt",
        "columns": "-,x1,y1,x2,y2,-,lost,occluded,generated,label,...",
        "keep": ("lost=0",),
        "image_fps": 240.0,
    },
    # The same at 30 frames a second: its text has eight lines for every image, as all readers of it
    # take every eighth.
    "nfs30": {
        "frames": "{sequence}/30/{sequence}",
        "truth": "{sequence}/30/{sequence}.txt",
        "columns": "-,x1,y1,x2,y2,-,lost,occluded,generated,label,...",
        "keep": ("lost=0",),
        "rows_per_frame": 8,
    },
    # tracking-net.org; pytracking ltr/dataset/tracking_net.py: TRAIN_0 to TRAIN_11 and TEST, whose
    # sequences have the box of the first frame alone. 30 frames a second is the common rate of
    # its YouTube videos.
    "trackingnet": {
        "frames": "{split}/frames/{sequence}",
        "truth": "{split}/anno/{sequence}.txt",
    },
    # vot-toolkit.readthedocs.io, tutorials/dataset: color/%08d.jpg, groundtruth.txt or, of several
    # objects, groundtruth_NAME.txt, the rate in the file `sequence`. Up to VOT 2017 images lie
    # beside groundtruth.txt: frames={sequence}. The first pixel is 0.
    "vot": {
        "frames": "{sequence}/color",
        "truth": "{sequence}/groundtruth*.txt",
        "columns": "region",
        "fps_file": "{sequence}/sequence:fps",
        "only": "list.txt",
    },
    # motchallenge.net (MOT16, MOT17, MOT20; DanceTrack alike); JonathonLuiten/TrackEval
    # mot_challenge_2d_box.py: conf 0 is a line to ignore, class 1 a pedestrian. Frames and pixels
    # count from 1.
    "mot": {
        "frames": "{split}/{sequence}/img1",
        "truth": "{split}/{sequence}/gt/gt.txt",
        "columns": "frame,id,x,y,w,h,conf,class,visibility,...",
        "keep": ("conf!=0", "class=1"),
        "first_pixel": 1,
        "fps_file": "{split}/{sequence}/seqinfo.ini:frameRate",
    },
    # The same of 2015, which knows no classes.
    "mot15": {
        "frames": "{split}/{sequence}/img1",
        "truth": "{split}/{sequence}/gt/gt.txt",
        "columns": "frame,id,x,y,w,h,conf,...",
        "keep": ("conf!=0",),
        "first_pixel": 1,
        "fps_file": "{split}/{sequence}/seqinfo.ini:frameRate",
    },
}
"""Name -> settings that differ from the plain ones."""
