# Reads what `llvm-cov export -format=lcov` says of the core and prints, for each folder, how many lines tests have run, without the tests'
# own lines; `uncovered` is the file that gets the lines that none has run, `floors` the one that says how many percent it has to be. From the
# top of the repository.

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

BEGIN {
    while ((getline line < floors) > 0) {
        if (line !~ /^#/ && split(line, part, " ") == 2) floor[part[1]] = part[2]
    }
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

# Prints a folder's line, and notes if it has fallen.
function report(folder, ran, all,    percent) {
    percent = 100 * ran / all
    printf "%-14s %6d of %6d lines  %5.1f %%\n", folder, ran, all, percent
    if (!(folder in floor)) {
        fallen = fallen "\nFAILED: there is no floor for the coverage of " folder
    } else if (percent < floor[folder]) {
        fallen = fallen sprintf("\nFAILED: coverage of %s has fallen to %.1f %%, the floor is %s %%", folder, percent, floor[folder])
    }
}

END {
    if (!all) {
        print "nothing was measured" > "/dev/stderr"
        exit 1
    }
    count = 0
    for (folder in lines) {
        # By insertion, since not every awk sorts.
        for (at = ++count; at > 1 && names[at - 1] > folder; at--) names[at] = names[at - 1]
        names[at] = folder
    }
    for (at = 1; at <= count; at++) report(names[at], covered[names[at]], lines[names[at]])
    report("all", ran, all)
    for (folder in floor) {
        if (folder != "all" && !(folder in lines)) fallen = fallen "\nFAILED: nothing was measured of " folder
    }
    if (fallen) {
        print substr(fallen, 2) > "/dev/stderr"
        exit 1
    }
}
