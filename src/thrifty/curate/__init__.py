"""Builds data sets from a recipe: read, clean, filter, deduplicate, split, register, report.

recipe                      what is asked for, as typed sections; every fault with its line
sources, read, shapes       files in pieces; their records; records as rows
clean, quality, language    what changes a row, and what removes it
sketch                      words of many texts at once as numbers: MinHash, sequences of 13 words
piece, workers              one piece of a source through all of that, in one process or several
duplicates, vectors         rows that say the same, found on disk with bounded memory
leaks                       rows that hold what models are judged by
select                      which rows go where: split, balance, weights, order, packs
augment_section, making     what a model is asked to make of rows, and what of it is of use
augmenting, augment_stage   the stage in which it is asked, by `teacher`
build                       the order of all that, and what makes it resumable
report                      what each stage did, as JSON and HTML
"""
