#!/usr/bin/env bash
# Downloads subsets of LibriSpeech (CC BY 4.0) to FOLDER/SUBSET, from OpenSLR's mirrors or from
# Hugging Face, or where HF_ENDPOINT says. prepare_librispeech.py calls it for a missing --subset.
#     bash runs/librispeech.sh data/LibriSpeech train-clean-100 dev-clean
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/get.sh"

# md5_of SUBSET: as https://www.openslr.org/12 states it
md5_of() {
    case $1 in
    dev-clean) echo 42e2234ba48799c1f50f24a7926300a1 ;;
    dev-other) echo c8d0bcc9cca99d4f8b62fcc847357931 ;;
    test-clean) echo 32fa31d27d2e1cad72775fee3f4849a9 ;;
    test-other) echo fb5a50374b501bb3bac4815ee91d3135 ;;
    train-clean-100) echo 2a93770f6d5c6c964bc36631d331a522 ;;
    train-clean-360) echo c0e676e450a7ff2f54aeade5171606fa ;;
    train-other-500) echo d1a0fd59409feb2c614ce4d30c387708 ;;
    *) return 1 ;;
    esac
}

folder=$1
shift
for subset in "$@"; do
    [ -d "$folder/$subset" ] && continue
    if ! md5=$(md5_of "$subset"); then
        echo "$subset is none of LibriSpeech's: dev-clean, dev-other, test-clean, test-other," \
            "train-clean-100, train-clean-360, train-other-500" >&2
        exit 2
    fi
    addresses=()
    for host in www.openslr.org openslr.trmal.net openslr.elda.org openslr.magicdatatech.com; do
        addresses+=("https://$host/resources/12/$subset.tar.gz")
    done
    hub=${HF_ENDPOINT:-https://huggingface.co}
    addresses+=("${hub%/}/datasets/k2-fsa/LibriSpeech/resolve/main/$subset.tar.gz")
    get "$folder/$subset.tar.gz" "$md5" "${addresses[@]}"
    rm -rf "$folder/$subset.part"
    mkdir "$folder/$subset.part"
    if ! tar -xzf "$folder/$subset.tar.gz" -C "$folder/$subset.part" ||
        ! mv "$folder/$subset.part/LibriSpeech/$subset" "$folder"; then
        rm -r "$folder/$subset.part"
        echo "$folder/$subset.tar.gz holds no LibriSpeech/$subset: delete it, run again" >&2
        exit 2
    fi
    rm -r "$folder/$subset.part" "$folder/$subset.tar.gz"
done
