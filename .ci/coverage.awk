# Reads what `llvm-cov export -format=lcov` says of the core and prints, for each folder, how many lines tests have run, without the tests'
# own lines; `uncovered` is the file that gets the lines that none has run. From the top of the repository.

# Where the tests that stand in a file begin; there is nothing else behind them.
function tests_from(file,    line, number, found) {
    while ((getline line < file) > 0) {
        number++
        if (line ~ /^mod tests \{/) {
            found = number
            break
        }
    }
    close(file)
    return found
}

/^SF:/ {
    file = substr($0, 4)
    sub(/^.*\/core\/src\//, "core/src/", file)
    wanted = file ~ /^core\/src\// && file !~ /(^|\/)(tests|testing|exhaustive)(\/|\.rs$)/
    if (wanted && !(file in limit)) {
        limit[file] = tests_from(file)
    }
    folder = file
    sub(/^core\/src\//, "", folder)
    sub(/(\/.*|\.rs)$/, "", folder)
}

/^DA:/ && wanted {
    split(substr($0, 4), part, ",")
    if (limit[file] && part[1] + 0 >= limit[file]) next
    lines[folder]++
    all++
    if (part[2] + 0 > 0) {
        covered[folder]++
        ran++
    } else {
        print file ":" part[1] > uncovered
    }
}

END {
    if (!all) {
        print "nothing was measured" > "/dev/stderr"
        exit 1
    }
    for (folder in lines) {
        printf "%-14s %6d of %6d lines  %5.1f %%\n", folder, covered[folder], lines[folder], 100 * covered[folder] / lines[folder] | "sort"
    }
    close("sort")
    printf "%-14s %6d of %6d lines  %5.1f %%\n", "all", ran, all, 100 * ran / all
}
