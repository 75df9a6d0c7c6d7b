# Sourced by scripts.

# get FILE MD5 ADDRESS ...: download a file once, from the first address that
# serves it whole. What was cut off goes on where it ended. MD5 "": unknown.
get() {
    local file=$1 md5=$2 address
    shift 2
    [ -f "$file" ] && return
    mkdir -p "$(dirname "$file")"
    for address in "$@"; do
        [ -n "$md5" ] || rm -f "$file.part"  # only a sum tells whether two parts fit
        echo "$address" >&2
        if has_md5 "$file.part" "$md5" || curl -fL -C - --retry 4 --connect-timeout 5 \
            --speed-limit 1 --speed-time 30 -o "$file.part" "$address"; then
            if [ -z "$md5" ] || has_md5 "$file.part" "$md5"; then
                mv "$file.part" "$file"
                return
            fi
            echo "$file.part has another MD5 than $md5: it is removed" >&2
            rm "$file.part"
        fi
    done
    echo "$file: no address serves it: try again (if it fails each time, delete $file.part)" >&2
    return 1
}

# has_md5 FILE MD5
has_md5() {
    [ -f "$1" ] && [ "$({ md5sum "$1" || md5 -r "$1"; } 2> /dev/null | cut -c1-32)" = "$2" ]
}

# clone REPOSITORY FOLDER [PART ...]: a repository of GitHub, once, whole or some of its folders
clone() {
    local from="https://github.com/$1" to=$2
    shift 2
    [ -d "$to" ] && return
    rm -rf "$to.part"
    if [ $# -gt 0 ]; then
        git clone --depth 1 --filter=blob:none --sparse "$from" "$to.part"
        git -C "$to.part" sparse-checkout set "$@"
    else
        git clone --depth 1 "$from" "$to.part"
    fi
    mv "$to.part" "$to"
}

# fresh FILE: replace FILE by standard input, if they differ
fresh() {
    mkdir -p "$(dirname "$1")"
    cat > "$1.part"
    cmp -s "$1.part" "$1" && rm "$1.part" || mv "$1.part" "$1"
}
