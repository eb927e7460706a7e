#!/bin/sh
# How the shipped models were trained and put into the package. Run in a folder that holds ESC-50/ and
# examples/; the runs go to runs/. Options of training that change no number (threads) are left out.
set -e
here=$(dirname "$0")
ship() { python "$here/ship.py" "$@"; }
esc="ESC-50: K. J. Piczak, ESC: Dataset for Environmental Sound Classification, 2015; recordings from
Freesound, credits of each clip in the file LICENSE of ESC-50."
unheard="Knows its kinds of sound only and calls everything one of them. Trained on clips of 5 s with one
sound each, mostly close to the microphone; far and overlapping sounds, and other devices, were not
tested."

# Teachers: DenseNet-121 on ESC-50, EfficientNet-lite0 on ESC-10, five official folds each.
stapes train ESC-50/ --recipe "$here/transfer/esc50-densenet121.toml" --no-final -o runs/densenet121
stapes train ESC-50/ --corpus esc10 --recipe transfer --no-final -o runs/lite0

student="stapes train ESC-50/ --recipe student --set training.precision=bfloat16"
$student --teacher runs/densenet121 -o runs/esc50-500kB
ship esc50-500kB runs/esc50-500kB --teacher-run runs/densenet121 --start \
  --description "50 everyday sounds in 500 kB" \
  --intended-use "Sounds of animals, weather, people, the house and the street, on a computer or a small board; where training on a few recordings starts from." \
  --limits "$unheard" --licence "CC BY-NC 3.0" --attribution "$esc" \
  --attribution "Its teachers started from ImageNet weights of Keras Applications (BSD-3-Clause)."

$student --teacher runs/densenet121 --set model.width=33 --set quantization.precision=int8 \
  -o runs/esc50-128kB
ship esc50-128kB runs/esc50-128kB --teacher-run runs/densenet121 \
  --note "fold 1 of the official five; the others were not run" \
  --description "50 everyday sounds in 128 kB" \
  --intended-use "Sounds of animals, weather, people, the house and the street, on a microcontroller." \
  --limits "$unheard" --licence "CC BY-NC 3.0" --attribution "$esc" \
  --attribution "Its teachers started from ImageNet weights of Keras Applications (BSD-3-Clause)."

$student --corpus esc10 --teacher runs/lite0 --set model.width=15 \
  --set quantization.precision=int8 -o runs/esc10-32kB
ship esc10-32kB runs/esc10-32kB --teacher-run runs/lite0 \
  --description "ten everyday sounds in 32 kB" \
  --intended-use "Microcontrollers, and a first try; free for commercial use with attribution." \
  --limits "$unheard" --licence "CC BY 3.0" --attribution "$esc" \
  --attribution "Its teachers started from ImageNet weights of EfficientNet-lite (Apache-2.0)."

stapes train examples/drum-hits --recipe quick --folds 4 --set quantization.precision=int8 \
  --set training.precision=bfloat16 -o runs/drum-hits
ship drum-hits runs/drum-hits \
  --description "single drum hits of nine kinds" \
  --intended-use "Sorting recordings of single hits of drum kits by instrument." \
  --limits "One hit per recording. Kits differ: accuracy on new kits was between 67 and 79 % in four folds; hand drums, bells and side sticks, of which few are among its 517 hits, are the weakest." \
  --licence "CC0, CC BY, CC BY-SA, GPL-2.0, by kit" \
  --attribution "Sixteen kits of Debian's hydrogen-drumkits and hydrogen-data; authors and licences in examples/drum-hits/LICENSES.md. Whoever takes a model for a derived work has to honour all of them."
