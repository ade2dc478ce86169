// A program of Go's runtime alone: what it needs is what Go's settings say.
package main

func main() { println("ran") }
